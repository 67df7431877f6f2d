"""Does tasks in an order that their needs allow, some at a time, each in a process of its own."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from mmemb_r1.study.tasks import Study, Task

STAGES = "mmemb_r1.study.stages"
LOG_FILE = "study.log"  # what processes say: logs of trainers, warnings
Tell = Callable[[str], None]


def run_tasks(study: Study, tasks: Sequence[Task], jobs: int, tell: Tell, stages: str = STAGES) -> int:
    """
    Do what is not done yet.

    Args:
        study: the study.
        tasks: with their needs. Earlier ones go first where needs allow.
        jobs: processes at a time; with 1 everything is done in this one.
        tell: is told of each start and end. What processes say besides goes into `study.log`.
        stages: module of the tasks' functions.

    Returns:
        How many were done.

    Raises:
        ValueError: if a need is no task, or tasks wait for one another.
    """
    names = {task.name for task in tasks}
    for task in tasks:
        if unknown := [need for need in task.needs if need not in names]:
            raise ValueError(f"the task {task.name!r} needs {unknown[0]!r}, which is none")
    left = _in_order([task for task in tasks if not task.done.exists()])
    tell(f"{len(tasks) - len(left)} of {len(tasks)} stages are done, {len(left)} to do, {jobs} at a time")
    progress = _Progress(len(tasks), len(tasks) - len(left), tell)
    if jobs == 1:
        for task in left:
            progress.begin(task)
            _do(study, task, stages)
            progress.end(task)
        return len(left)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that are started now
    context = get_context("spawn")
    with ProcessPoolExecutor(
        jobs, context, initializer=_prepare, initargs=(os.getpid(), threads, study.output / LOG_FILE)
    ) as pool:
        try:
            _drive(study, left, jobs, pool, progress, stages)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return len(left)


def _drive(
    study: Study, left: Sequence[Task], jobs: int, pool: ProcessPoolExecutor, progress: _Progress, stages: str
) -> None:
    waiting, running = list(left), dict[Future[None], Task]()
    while waiting or running:
        undone = {task.name for task in [*waiting, *running.values()]}
        for task in [task for task in waiting if not undone & set(task.needs)][: jobs - len(running)]:
            waiting.remove(task)
            progress.begin(task)
            running[pool.submit(_do, study, task, stages)] = task
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            task = running.pop(future)
            future.result()
            progress.end(task)


def _in_order(tasks: Sequence[Task]) -> list[Task]:
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


def _do(study: Study, task: Task, stages: str) -> None:
    getattr(import_module(stages), task.function)(study, **task.arguments)


def _prepare(parent: int, threads: int, log: Path) -> None:
    """A process ends with the one that started it, however that ends: a study that goes on must have no rival."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    sys.stdout = sys.stderr = log.open("a", buffering=1, encoding="utf-8")  # for as long as it lives
    import datasets
    import torch

    datasets.disable_progress_bars()
    torch.set_num_threads(threads)


class _Progress:
    """Tells what began and ended, how long it took, and how far everything is."""

    def __init__(self, total: int, done: int, tell: Tell) -> None:
        self.total, self.done, self.tell = total, done, tell
        self._began: dict[str, float] = {}

    def begin(self, task: Task) -> None:
        self._began[task.name] = time.monotonic()
        self.tell(f"{time.strftime('%H:%M:%S')}  begins: {task.name}")

    def end(self, task: Task) -> None:
        self.done += 1
        seconds = time.monotonic() - self._began.pop(task.name)
        self.tell(f"{time.strftime('%H:%M:%S')}  done, {seconds:.0f} s: {task.name} ({self.done} of {self.total})")
