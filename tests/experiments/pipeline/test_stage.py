from __future__ import annotations

import json
import shutil

import pytest

from experiments.pipeline.stage import cost_of, run_noted, run_stage


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


def test_a_stage_has_an_id_and_knows_what_it_was_made_of(tmp_path):
    ids = {cost_of(tmp_path / name)["id"] for name in "ab" if run_stage(tmp_path / name, {}, lambda made: None)}
    assert len(ids) == 2
    first, second = ids
    run_stage(tmp_path / "c", {}, lambda made: None, made_of={"a": first})
    assert cost_of(tmp_path / "c")["made of"] == {"a": first}
    with pytest.raises(ValueError, match=r"c was begun with other settings or data: made of.a was '.*', is now '.*'"):
        run_stage(tmp_path / "c", {}, lambda made: None, made_of={"a": second})  # it is there, and of something else


def test_a_removed_result_does_not_come_back_from_its_checkpoints(tmp_path):
    folder, checkpoints, found = tmp_path / "joint", tmp_path / "checkpoints", []

    def train(made):
        found.append((checkpoints / "checkpoint-250").exists())
        (checkpoints / "checkpoint-250").mkdir(parents=True, exist_ok=True)

    run_stage(folder, {}, train, checkpoints=checkpoints)
    assert not checkpoints.exists()
    shutil.rmtree(folder)
    run_stage(folder, {}, train, checkpoints=checkpoints)
    assert found == [False, False]


def test_a_killed_training_goes_on_from_its_checkpoints_and_only_with_the_same_data(tmp_path):
    folder, checkpoints = tmp_path / "joint", tmp_path / "checkpoints"

    def killed(made):
        (checkpoints / "checkpoint-50").mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(folder, {}, killed, made_of={"start": "1"}, checkpoints=checkpoints)
    assert (checkpoints / "checkpoint-50").exists()
    (tmp_path / "joint.json").unlink()  # as the message about it asks for
    with pytest.raises(
        ValueError, match=r"checkpoints was begun .*made of.start was '1', is now '2'.* Remove .*check"
    ):
        run_stage(folder, {}, lambda made: None, made_of={"start": "2"}, checkpoints=checkpoints)


def test_work_that_keeps_its_own_results_is_noted(tmp_path):
    path, calls = tmp_path / "scores" / "part-1.json", []

    def work():
        calls.append(1)
        if len(calls) == 1:
            raise OSError("no space left")
        return {"rationales": 8}

    with pytest.raises(OSError, match="no space left"):
        run_noted(path, {"part": 1}, work, made_of={"prior": "1"})
    assert cost_of(path) is None
    assert run_noted(path, {"part": 1}, work, made_of={"prior": "1"})
    assert not run_noted(path, {"part": 1}, work, made_of={"prior": "1"}) and len(calls) == 2
    noted = cost_of(path)
    assert noted["rationales"] == 8 and noted["resumed"] is True and noted["made of"] == {"prior": "1"}
    with pytest.raises(ValueError, match=r"part-1.json was begun .*made of.prior was '1', is now '2'"):
        run_noted(path, {"part": 1}, work, made_of={"prior": "2"})
