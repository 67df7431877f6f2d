from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import SafetensorError
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


def save_safetensors(path):
    # what it says; it writes beside `path`, and so not to /dev/full
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def save_by_torch(path):
    import torch

    torch.save(torch.zeros(10_000), path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full is simulated by /dev/full")
@pytest.mark.parametrize(
    "save",
    [
        lambda path: path.write_text("a" * 10_000, encoding="utf-8"),
        lambda path: np.zeros(10_000).tofile(path),
        save_safetensors,
        save_by_torch,
    ],
)
def test_a_full_disk_is_told_whoever_writes(save, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    (tmp_path / "out").write_text("as it was", encoding="utf-8")
    with (
        pytest.raises(OSError, match=r"out can't be written: the disk is full. Free some space") as error,
        replaced_file(tmp_path / "out") as temporary,
    ):
        temporary.symlink_to("/dev/full")
        save(temporary)
    assert error.value.errno == errno.ENOSPC and error.value.__cause__ is not None
    assert (tmp_path / "out").read_text(encoding="utf-8") == "as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "other", [FileNotFoundError(2, "No such file", "a.png"), RuntimeError("written by nobody"), OSError("unreadable")]
)
def test_other_errors_while_something_is_written_stay_what_they_are(other, tmp_path):
    with pytest.raises(type(other)) as error, replaced_file(tmp_path / "out"):
        raise other
    assert error.value is other
