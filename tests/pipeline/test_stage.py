from __future__ import annotations

import json

import pytest

from mmemb_r1.pipeline.stage import cost_of, run_stage


def test_a_stage_is_made_once_and_says_what_it_took(tmp_path):
    calls = []

    def make(made):
        calls.append(made)
        (made / "result").write_text("x")

    assert run_stage(tmp_path / "stage", {"steps": 1}, make) and not run_stage(tmp_path / "stage", {"steps": 1}, make)
    assert len(calls) == 1 and (tmp_path / "stage" / "result").read_text() == "x"
    cost = cost_of(tmp_path / "stage")
    assert cost["seconds"] >= 0 and cost["resumed"] is False and cost["threads"] >= 1


def test_a_stage_that_failed_leaves_nothing_and_goes_on(tmp_path):
    def fails(made):
        (made / "half").write_text("x")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        run_stage(tmp_path / "stage", {}, fails)
    assert not (tmp_path / "stage").exists() and cost_of(tmp_path / "stage") is None
    assert run_stage(tmp_path / "stage", {}, lambda made: (made / "whole").write_text("x"))
    assert sorted(path.name for path in (tmp_path / "stage").iterdir()) == ["stage.json", "whole"]
    assert json.loads((tmp_path / "stage" / "stage.json").read_text())["resumed"] is True


def test_other_settings_are_refused(tmp_path):
    run_stage(tmp_path / "stage", {"steps": 1}, lambda made: None)
    with pytest.raises(ValueError, match="stage was begun with other settings or data: steps was 1, is now 2"):
        run_stage(tmp_path / "stage", {"steps": 2}, lambda made: None)
