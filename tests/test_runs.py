from __future__ import annotations

import os
import stat
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from mmemb_r1.runs import check_run, read_json, record_run, replaced_file, write_json


def test_a_claim_is_good_for_the_same_run_only(tmp_path):
    path, facts = tmp_path / "run" / "run.json", {"seed": 0, "fields": {"a": 1, "b": 2}, "sides": ("query",)}
    assert not check_run(path, facts)
    assert not path.exists()
    assert not record_run(path, facts)
    assert check_run(path, facts)
    assert record_run(path, facts)
    other = {"seed": 0, "fields": {"a": 1, "b": 3, "c": 4}, "sides": ("target",)}
    message = (
        r"run was begun with other settings or data: fields\.b was 2, is now 3; fields\.c was not set, is now 4; "
        r"sides was \['query'\], is now \['target'\] \(see .*run\.json\)\. Choose another folder, or remove it\."
    )
    with pytest.raises(ValueError, match=message):
        record_run(path, other)


def test_a_claim_says_whose_it_is_and_shows_no_more_than_needed(tmp_path):
    record_run(tmp_path / "a.json", dict.fromkeys("abcde", 1))
    with pytest.raises(
        ValueError, match=r"^the worker was begun .*a was 1, is now 2; b .*; c .*; \.\.\. .*\. Rename it\.$"
    ):
        check_run(tmp_path / "a.json", dict.fromkeys("abcde", 2), what="the worker", hint="Rename it.")


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": [1]})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")}, allow_nan=False)
    assert path.read_text(encoding="utf-8") == '{\n  "a": [\n    1\n  ]\n}\n'
    assert [one.name for one in path.parent.iterdir()] == ["a.json"]


def test_files_have_the_permissions_that_the_process_gives_new_ones(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
        with replaced_file(tmp_path / "a.safetensors") as temporary:  # which safetensors makes for the user alone
            save_file({"a": np.zeros(1)}, temporary)
        with replaced_file(tmp_path / "copy") as temporary:
            temporary.touch(mode=0o400)
        with replaced_file(tmp_path / "folder") as temporary:
            temporary.mkdir(mode=0o700)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir() if path.name != "folder"}
    assert modes == {0o640}
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750  # one without x can't be entered


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path):
    old, new, other = tmp_path / ".a.json.abc", tmp_path / ".a.json.def", tmp_path / ".b.json.abc"
    for folder in (old, new, other):
        folder.mkdir()
        (folder / "a.json").write_text("{")
    long_ago = time.time() - 2 * 24 * 60 * 60
    for path in (old / "a.json", old, new):  # in `new`, somebody still writes
        os.utime(path, (long_ago, long_ago))
    write_json(tmp_path / "a.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.json.def", ".b.json.abc", "a.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}"])
def test_a_damaged_note_is_named(content, tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    for read in (read_json, lambda path: record_run(path, {"seed": 0})):
        with pytest.raises(ValueError, match=r"run\.json is damaged .*remove it"):
            read(path)
