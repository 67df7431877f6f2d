"""Tell how far long work is: a bar where somebody watches, and a line in the log now and then where nobody does."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, Task

PERIOD = 30.0  # seconds from one line of the log to the next
logger = logging.getLogger(__name__)


def shows_bars() -> bool:
    """Tell whether standard error is a terminal, or a notebook's: everywhere else a bar is a heap of lines."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress_bar(shown: bool | None = None) -> Progress:
    """
    Make a bar on standard error per task that is added: how much is done of how much, the rate, the time left.

    Where no bar is shown, the logger `mmemb_r1.progress` gets the same as one line, at level INFO, every 30 seconds:
    what takes less leaves none.

    Args:
        shown: `False` for no bar. Default: a bar where standard error is a terminal or a notebook's, and nowhere else,
            not with `True` either: a log file would be full of bars.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            rate = task.finished_speed or task.speed
            return Text("" if rate is None else f"{rate:.1f}/s", style="progress.data.speed")

    class LoggedProgress(Progress):
        last = time.monotonic()

        def advance(self, task_id: TaskID, advance: float = 1) -> None:
            super().advance(task_id, advance)
            self.note()

        def update(self, task_id: TaskID, **changes: Any) -> None:
            super().update(task_id, **changes)
            self.note()

        def note(self) -> None:
            now = self.get_time()
            if self.disable and now - self.last >= PERIOD:
                self.last = now
                tasks = [task for task in self.tasks if not task.finished] or self.tasks[-1:]
                logger.info("%s", "; ".join(map(describe, tasks)))

    return LoggedProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=shown is False or not shows_bars(),
        get_time=time.monotonic,
    )


def describe(task: Task) -> str:
    """Say in words what a bar shows of a task."""
    total = None if task.total is None else round(task.total)
    return pace(task.description, round(task.completed), total, task.finished_speed or task.speed)


def pace(name: str, done: int, total: int | None, rate: float | None) -> str:
    """
    Say how far something is, how fast it goes, and how long it will take.

    Args:
        name: what is done.
        done: how much of it.
        total: of how much. `None`: that is not known.
        rate: how much in a second. `None`: that is not known yet.

    >>> pace("queries", 1500, 4500, 2.5), pace("queries", 1500, None, None)
    ('queries: 1,500 of 4,500, 2.5/s, 0:20:00 left', 'queries: 1,500')
    """
    text = f"{name}: {done:,}" if total is None else f"{name}: {done:,} of {total:,}"
    if not rate:
        return text
    left = "" if total is None or done >= total else f", {timedelta(seconds=round((total - done) / rate))} left"
    return f"{text}, {rate:.3g}/s{left}"


@contextmanager
def step_of(bar: Progress, name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a line of a bar for as long as a step takes; yield a function to tell how many more are done."""
    step = bar.add_task(name, total=total)
    try:
        yield lambda count: bar.advance(step, count)
    finally:
        bar.remove_task(step)
