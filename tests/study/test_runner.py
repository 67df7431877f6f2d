from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmemb_r1.study.runner import run_tasks
from mmemb_r1.study.tasks import Task

NAMES = ("data", "judge", "arm", "arm 2", "answers")
NEEDS = {"judge": ("data",), "arm": ("judge",), "arm 2": ("judge",), "answers": ("arm", "arm 2")}


@pytest.fixture
def stages(monkeypatch):
    """A module of stages that note what they were asked to do, and may be stopped in the middle of one."""
    module = SimpleNamespace(calls=[], stop_at=None)

    def work(study, name):
        module.calls.append(name)
        if name == module.stop_at:
            raise KeyboardInterrupt
        (study.output / name).write_text("whole")

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


def test_progress_is_told(tmp_path, stages):
    told: list[str] = []
    (tmp_path / "data").write_text("whole")
    run(tmp_path, tasks(tmp_path), told)
    assert told[0] == "1 of 5 stages are done, 4 to do, 1 at a time"
    assert told[1].endswith("begins: judge") and told[-1].endswith("answers (5 of 5)")


def test_a_need_that_is_no_task_is_refused(tmp_path, stages):
    with pytest.raises(ValueError, match="the task 'judge' needs 'dta', which is none"):
        run(tmp_path, tasks(tmp_path, {"judge": ("dta",)}))


def test_tasks_that_wait_for_one_another_are_refused(tmp_path, stages):
    with pytest.raises(ValueError, match="these tasks wait for one another: arm, judge"):
        run(tmp_path, tasks(tmp_path, {"judge": ("arm",), "arm": ("judge",)}))
    assert stages.calls == []
