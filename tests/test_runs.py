from __future__ import annotations

import pytest

from mmemb_r1.runs import check_run, record_run, write_json


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
