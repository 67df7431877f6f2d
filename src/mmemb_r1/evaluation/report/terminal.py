"""Show results as tables in the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from typing import IO, TYPE_CHECKING, Literal, NamedTuple

from mmemb_r1.evaluation.report.layout import Entry, columns_of, sections_of
from mmemb_r1.evaluation.run_folder import Results

if TYPE_CHECKING:
    from rich.table import Table


class Head(NamedTuple):
    """Names a column."""

    title: str
    main: bool = False  # the table is about it
    number: bool = True  # stands to the right


def results_table(results: Results, title: str | None = None) -> Table:
    """
    Lay out a `rich` table: per task its baselines, then of each mode the score with its 95 % interval, what it costs
    and the time it takes; means at the end of each group and at the end.

    `maj.` always gives the task's most frequent answer; `blind` is the better of the modes without the query's
    picture; `thinks` is the share of queries that thought; `tokens` are those of a rationale; `ms` is milliseconds per
    query. Columns that no task has are left out.

    Args:
        results: what `evaluate` returned.
        title: defaults to the metric's name and "per task".
    """
    metrics = dict.fromkeys(result["metric"] for result in results["tasks"].values())
    default = f"{next(iter(metrics)) if len(metrics) == 1 else 'score'} per task"
    columns = columns_of(results)
    return lined_table(
        title or default,
        [Head(column.title, column.main) for column in columns],
        results,
        lambda entry: [column.cell(entry) for column in columns],
    )


def lined_table(title: str, heads: Iterable[Head], results: Results, cells: Callable[[Entry], Iterable[str]]) -> Table:
    """
    Lay out a `rich` table with a line per task and per mean over tasks, group by group: `heads` are those of the
    columns after the one with the names, and `cells` says what these hold for a task or a group.
    """
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("task", no_wrap=True)
    for head in heads:
        justify: Literal["left", "right"] = "right" if head.number else "left"
        table.add_column(head.title, justify=justify, no_wrap=True, style="bold" if head.main else None)
    for section in sections_of(results):
        for line in section:
            table.add_row(line.title, *cells(line.entry), style="italic" if line.mean else None)
        table.add_section()
    return table


def print_table(table: Table, file: IO[str] | None = None) -> None:
    """Print a table as wide as it is, also where the terminal is narrower. Default: to standard output."""
    from rich.console import Console
    from rich.measure import Measurement

    wide = Console(width=10_000)
    needed = Measurement.get(wide, wide.options, table).maximum
    Console(file=file, width=max(needed, shutil.get_terminal_size().columns)).print(table)
