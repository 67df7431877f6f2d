"""The results of an evaluation as a table: its rows and columns, and how it looks in the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from mmemb_r1.evaluation.results import Results
from mmemb_r1.evaluation.summary import ALL

if TYPE_CHECKING:
    from rich.table import Table

MISSING = "-"
FIRST_GROUP = "simple"  # of Atlas: what needs no thought comes before what does
Entry = Mapping[str, Any]  # what results tell of a task or of a group


@dataclass(frozen=True)
class Column:
    """
    A column of numbers.

    Args:
        title: above it.
        cell: what it says of a task or a group.
        main: whether it is what the table is about.
    """

    title: str
    cell: Callable[[Entry], str]
    main: bool = False


@dataclass(frozen=True)
class Line:
    """
    A row.

    Args:
        title: the task's name, or which mean it is.
        entry: what results tell of it.
        mean: whether it is a mean over tasks.
    """

    title: str
    entry: Entry
    mean: bool = False


def results_table(results: Results, title: str | None = None) -> Table:
    """
    A `rich` table: per task its baselines, then of each mode the score with its 95 % interval, what it costs and the
    time it takes; means at the end of each group and at the end.

    `maj.` always gives the task's most frequent answer; `blind` is the better of the modes without the query's
    picture; `thinks` is the share of queries that thought; `tokens` are those of a rationale; `ms` is milliseconds per
    query. Columns that no task has are left out.

    Args:
        results: what `evaluate` returned.
        title: defaults to the metric's name and "per task".
    """
    from rich import box
    from rich.table import Table

    metrics = dict.fromkeys(result["metric"] for result in results["tasks"].values())
    default = f"{next(iter(metrics)) if len(metrics) == 1 else 'score'} per task"
    table = Table(title=title or default, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("task", no_wrap=True)
    columns = columns_of(results)
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True, style="bold" if column.main else None)
    for section in sections_of(results):
        for line in section:
            style = "italic" if line.mean else None
            table.add_row(line.title, *(column.cell(line.entry) for column in columns), style=style)
        table.add_section()
    return table


def print_table(table: Table, file: IO[str] | None = None) -> None:
    """Print a table as wide as it is, also where the terminal is narrower. Default: to standard output."""
    from rich.console import Console
    from rich.measure import Measurement

    wide = Console(width=10_000)
    needed = Measurement.get(wide, wide.options, table).maximum
    Console(file=file, width=max(needed, shutil.get_terminal_size().columns)).print(table)


def columns_of(results: Results) -> list[Column]:
    """The columns of numbers that there is something for."""
    tasks = list(results["tasks"].values())
    columns = [Column("n", lambda entry: str(entry["n"]))]
    if len({task["metric"] for task in tasks}) > 1:
        columns.append(Column("metric", lambda entry: entry.get("metric", "")))
    if any("majority" in task for task in tasks):
        columns.append(Column("maj.", lambda entry: _share(entry.get("majority"))))
    if any("no_image" in task for task in tasks):
        columns.append(Column("blind", lambda entry: _share(max(entry.get("no_image", {}).values(), default=None))))
    for mode in results["config"]["modes"]:
        columns += _columns_of_mode(mode, [task["modes"][mode] for task in tasks])
    return columns


def _columns_of_mode(mode: str, numbers: Sequence[Entry]) -> Iterable[Column]:
    yield Column(mode, lambda entry: _share(entry["modes"][mode]["score"]), main=True)
    if any("interval" in one for one in numbers):
        yield Column("95 %", lambda entry: ends(entry["modes"][mode].get("interval")))
    if mode == "always":
        yield Column("tokens", lambda entry: f"{entry['modes'][mode]['mean_reasoning_tokens']:.1f}")
    if mode == "auto":
        yield Column("thinks", lambda entry: f"{entry['modes'][mode]['invocation_ratio']:.0%}")
    if any(one["seconds_per_query"] is not None for one in numbers):
        yield Column("ms", lambda entry: _milliseconds(entry["modes"][mode]["seconds_per_query"]))


def sections_of(results: Results) -> list[list[Line]]:
    """The tasks of each of the finest groups, with their mean; at the end the means of wider groups and of all."""
    tasks, summary = results["tasks"], results["summary"]
    finest: dict[str | None, list[str]] = {}
    for name, task in tasks.items():
        finest.setdefault(list(task["groups"].values())[-1] if task["groups"] else None, []).append(name)
    sections = []
    for group in sorted(finest, key=lambda group: group != FIRST_GROUP):
        lines = [Line(name, tasks[name]) for name in finest[group]]
        sections.append(lines + ([] if group is None else [Line(f"mean of {group}", summary[group], mean=True)]))
    wider = [group for group in summary if group not in (*finest, ALL)]
    return [*sections, [Line(f"mean of {group}", summary[group], mean=True) for group in (*wider, ALL)]]


def ends(interval: Sequence[float] | None) -> str:
    """
    Both ends of an interval of shares, without what is the same in all.

    >>> ends([0.8125, 1.0])
    '.81-1.0'
    """
    if interval is None:
        return MISSING
    return "-".join("1.0" if end >= 0.995 else f"{end:.2f}"[1:] for end in interval)


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _milliseconds(seconds: float | None) -> str:
    return MISSING if seconds is None else f"{1000 * seconds:.1f}"
