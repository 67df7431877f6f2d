"""Run tasks in an order that their needs allow, some at a time, each in a process of its own."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from importlib import import_module
from pathlib import Path

from experiments.pipeline.stage import cost_of, ids_of
from experiments.study.tasks import Study, Task
from mmemb_r1.processes import process_pool

STAGES = "experiments.study.stages"
LOG_FILE = "study.log"  # output of the processes: logs of trainers, warnings
Report = Callable[[str], None]


def run_tasks(study: Study, tasks: Sequence[Task], jobs: int, report: Report, stages: str = STAGES) -> int:
    """
    Run the tasks that are not done yet.

    Args:
        study: the study.
        tasks: with their needs. Earlier ones go first where needs allow.
        jobs: processes at a time; with 1 everything is done in this one.
        report: called with a line at each start and end. Everything else that processes print goes into `study.log`.
        stages: module of the tasks' functions.

    Returns:
        How many were done.

    Raises:
        ValueError: if a need is no task, tasks wait for one another, or something was made of what is gone or was made
            anew since.
    """
    names = {task.name for task in tasks}
    for task in tasks:
        if unknown := [need for need in task.needs if need not in names]:
            raise ValueError(f"the task {task.name!r} needs {unknown[0]!r}, which is no task")
    ordered = in_order(tasks)
    check_origins(ordered)
    places = {task.name: task.done for task in tasks}
    left = [task for task in ordered if not task.done.exists()]
    report(f"{len(tasks) - len(left)} of {len(tasks)} stages are done, {len(left)} to do, {jobs} at a time")
    progress = _Progress(len(tasks), len(tasks) - len(left), report)
    if jobs == 1:
        for task in left:
            progress.begin(task)
            _run(study, task, stages, origins_of(task, places))
            progress.end(task)
        return len(left)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with process_pool(jobs, threads, study.output / LOG_FILE) as pool:
        _drive(study, left, places, jobs, pool, progress, stages)
    return len(left)


def check_origins(ordered: Sequence[Task]) -> None:
    """
    Refuse results that were made of other results than those that are there now: nobody would notice later.

    Args:
        ordered: tasks, each after what it needs.
    """
    places = {task.name: task.done for task in ordered}
    undone, stale = set[str](), list[tuple[Task, str]]()
    for task in ordered:
        if not task.done.exists():
            undone.add(task.name)
            continue
        noted = cost_of(task.done) or {}
        if "id" not in noted:
            raise ValueError(f"{task.done} does not say what it was made of; remove it to have it made anew")
        origins, here = noted["made of"], origins_of(task, places)
        if changed := [need for need in task.needs if need in undone or origins.get(need) != here[need]]:
            undone.add(task.name)
            stale.append((task, changed[0]))
    if stale:
        reasons = "; ".join(f"{task.name!r} of {need!r}" for task, need in stale[:3]) + ("; ..." * (len(stale) > 3))
        paths = shlex.join(str(path) for task, _ in stale for path in (task.done, *notes_of(task.done)))
        raise ValueError(
            f"these were made of what is gone or was made anew since: {reasons}. To have them made anew, too, remove "
            f"them: rm -r {paths}"
        )


def origins_of(task: Task, places: Mapping[str, Path]) -> dict[str, str]:
    """The ids of what a task needs, as far as it is there. `places`: name of a task -> where its result lies."""
    return ids_of({need: places[need] for need in task.needs})


def notes_of(done: Path) -> list[Path]:
    """The files beside a result that note what it was begun with."""
    return [path for path in (done.with_name(f"{done.name}.json"), done.with_suffix(".begun.json")) if path.exists()]


def _drive(
    study: Study,
    left: Sequence[Task],
    places: Mapping[str, Path],
    jobs: int,
    pool: ProcessPoolExecutor,
    progress: _Progress,
    stages: str,
) -> None:
    waiting, running = list(left), dict[Future[None], Task]()
    while waiting or running:
        undone = {task.name for task in [*waiting, *running.values()]}
        for task in [task for task in waiting if not undone & set(task.needs)][: jobs - len(running)]:
            waiting.remove(task)
            progress.begin(task)
            running[pool.submit(_run, study, task, stages, origins_of(task, places))] = task
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            task = running.pop(future)
            if (error := future.exception()) is not None:
                progress.fail(task, error, [other.name for other in running.values()])
                raise error
            progress.end(task)


def in_order(tasks: Sequence[Task]) -> list[Task]:
    """Each after what it needs; otherwise as they come."""
    waiting, ordered = list(tasks), list[Task]()
    while waiting:
        undone = {task.name for task in waiting}
        task = next((task for task in waiting if not undone & set(task.needs)), None)
        if task is None:
            raise ValueError(f"these tasks wait for one another: {', '.join(sorted(undone))}")
        waiting.remove(task)
        ordered.append(task)
    return ordered


def _run(study: Study, task: Task, stages: str, made_of: Mapping[str, str]) -> None:
    getattr(import_module(stages), task.function)(study, **task.arguments, made_of=made_of)


class _Progress:
    """Report what began and ended, how long it took, and how many tasks are done."""

    def __init__(self, total: int, done: int, report: Report) -> None:
        self.total, self.done, self.report = total, done, report
        self._began: dict[str, float] = {}

    def begin(self, task: Task) -> None:
        self._began[task.name] = time.monotonic()
        self.report(f"{time.strftime('%H:%M:%S')}  begins: {task.name}")

    def fail(self, task: Task, error: BaseException, others: Sequence[str]) -> None:
        """At once: what still runs may take long, and has to end before the error can be raised."""
        waits = f"; waits for: {', '.join(others)}" if others else ""
        self.report(f"{time.strftime('%H:%M:%S')}  failed: {task.name}: {type(error).__name__}: {error}{waits}")

    def end(self, task: Task) -> None:
        self.done += 1
        seconds = time.monotonic() - self._began.pop(task.name)
        self.report(f"{time.strftime('%H:%M:%S')}  done, {seconds:.0f} s: {task.name} ({self.done} of {self.total})")
