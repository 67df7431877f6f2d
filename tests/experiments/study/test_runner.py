from __future__ import annotations

import json
import shlex
import sys
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.pipeline.stage import run_noted
from experiments.study.runner import _drive, _Progress, run_tasks
from experiments.study.tasks import Task

NAMES = ("data", "evaluator", "arm", "arm 2", "outcomes")
NEEDS = {"evaluator": ("data",), "arm": ("evaluator",), "arm 2": ("evaluator",), "outcomes": ("arm", "arm 2")}


@pytest.fixture
def stages(monkeypatch):
    """A module of stages that note what they were asked to do, and may be stopped in the middle of one."""
    module = SimpleNamespace(calls=[], stop_at=None)

    def work(study, name, made_of):
        module.calls.append(name)
        if name == module.stop_at:
            raise KeyboardInterrupt
        run_noted(study.output / name, {}, lambda: None, made_of=made_of)

    module.work = work
    monkeypatch.setitem(sys.modules, "stages_of_this_test", module)
    return module


def tasks(folder: Path, needs=NEEDS):
    return [Task(name, folder / name, "work", {"name": name}, needs.get(name, ())) for name in NAMES]


def run(folder, tasks, told=None):
    study = SimpleNamespace(output=folder)
    return run_tasks(study, tasks, 1, (told if told is not None else []).append, stages="stages_of_this_test")


@pytest.mark.parametrize("stopped", NAMES)
def test_nothing_that_is_done_is_done_again(tmp_path, stages, stopped):
    stages.stop_at = stopped
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tasks(tmp_path))
    before = list(stages.calls)
    stages.stop_at = None
    assert run(tmp_path, tasks(tmp_path)) == len(NAMES) - len(before) + 1
    assert stages.calls == [*before, *[name for name in NAMES if name not in before[:-1]]]  # only what was stopped
    assert run(tmp_path, tasks(tmp_path)) == 0


def test_each_goes_after_what_it_needs(tmp_path, stages):
    assert run(tmp_path, tasks(tmp_path)[::-1]) == 5
    place = {name: stages.calls.index(name) for name in NAMES}
    assert all(place[need] < place[name] for name, needs in NEEDS.items() for need in needs)


def test_what_was_made_of_something_that_is_gone_is_refused_and_may_be_removed(tmp_path, stages):
    """Else old answers would stand beside a new model."""
    run(tmp_path, tasks(tmp_path))
    (tmp_path / "evaluator").unlink()
    with pytest.raises(
        ValueError, match=r"made anew since: 'arm' of 'evaluator'; 'arm 2' of 'evaluator'; 'outcomes' of 'arm'"
    ):
        run(tmp_path, tasks(tmp_path))
    assert len(stages.calls) == 5  # before anything is done


def test_what_was_made_of_something_that_is_another_one_is_refused(tmp_path, stages):
    run(tmp_path, tasks(tmp_path))
    (tmp_path / "arm").unlink()
    (tmp_path / "outcomes").unlink()
    (tmp_path / "outcomes.begun.json").unlink()
    stages.stop_at = "outcomes"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tasks(tmp_path))
    stages.stop_at = None
    run(tmp_path, tasks(tmp_path))
    made = json.loads((tmp_path / "arm").read_text())
    (tmp_path / "arm").write_text(json.dumps({**made, "id": "another"}))
    with pytest.raises(ValueError, match="made anew since: 'outcomes' of 'arm'") as caught:
        run(tmp_path, tasks(tmp_path))
    _, _, *paths = shlex.split(str(caught.value).split("remove them: ")[1])
    assert [Path(path).name for path in paths] == ["outcomes", "outcomes.begun.json"]
    for path in paths:
        Path(path).unlink()
    assert run(tmp_path, tasks(tmp_path)) == 1


def test_a_result_that_says_nothing_of_itself_is_refused(tmp_path, stages):
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match="data does not say what it was made of; remove it to have it made anew"):
        run(tmp_path, tasks(tmp_path))


def test_a_failure_is_told_before_the_others_have_ended(tmp_path):
    """They may take an hour."""
    told: list[str] = []
    failed, slow = Future(), Future()
    failed.set_exception(OSError("no space left"))
    pool = SimpleNamespace(submit=lambda do, study, task, *_: {"data": failed}.get(task.name, slow))
    todo = tasks(tmp_path, {})[:2]
    progress = _Progress(2, 0, told.append)
    with pytest.raises(OSError, match="no space left"):
        _drive(SimpleNamespace(output=tmp_path), todo, {t.name: t.done for t in todo}, 2, pool, progress, "")
    assert told[-1].endswith("failed: data: OSError: no space left; waits for: evaluator") and not slow.done()


def test_progress_is_told(tmp_path, stages):
    told: list[str] = []
    run_noted(tmp_path / "data", {}, lambda: None)
    run(tmp_path, tasks(tmp_path), told)
    assert told[0] == "1 of 5 stages are done, 4 to do, 1 at a time"
    assert told[1].endswith("begins: evaluator") and told[-1].endswith("outcomes (5 of 5)")


def test_a_need_that_is_no_task_is_refused(tmp_path, stages):
    with pytest.raises(ValueError, match="the task 'evaluator' needs 'dta', which is no task"):
        run(tmp_path, tasks(tmp_path, {"evaluator": ("dta",)}))


def test_tasks_that_wait_for_one_another_are_refused(tmp_path, stages):
    with pytest.raises(ValueError, match="these tasks wait for one another: arm, evaluator"):
        run(tmp_path, tasks(tmp_path, {"evaluator": ("arm",), "arm": ("evaluator",)}))
    assert stages.calls == []
