"""How far a long run is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def progress_bar(shown: bool) -> Progress:
    """A bar on standard error per task that is added to it: how much is done of how much, the rate, the time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            rate = task.finished_speed or task.speed
            return Text("" if rate is None else f"{rate:.1f}/s", style="progress.data.speed")

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )


@contextmanager
def step_of(bar: Progress, name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A line of a bar for as long as a step takes; what comes is told how many more are done."""
    step = bar.add_task(name, total=total)
    try:
        yield lambda count: bar.advance(step, count)
    finally:
        bar.remove_task(step)
