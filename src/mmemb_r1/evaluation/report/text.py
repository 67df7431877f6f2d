"""Lay out results as text: tables of the terminal, and the Markdown report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

from mmemb_r1.evaluation.run_folder import Results
from mmemb_r1.evaluation.settings import LOOKING, LOOKS, reasoning_of
from mmemb_r1.evaluation.tasks import ALL
from mmemb_r1.formatting import table

if TYPE_CHECKING:
    from rich.table import Table


MISSING = "-"
FIRST_GROUP = "simple"  # of Atlas: what needs no rationale comes before what does
Entry = Mapping[str, Any]  # what results tell of a task or of a group


def ends(interval: Sequence[float] | None) -> str:
    """
    Write both ends of an interval of shares, without what is the same in all.

    >>> ends([0.8125, 1.0])
    '.81-1.0'
    """
    if interval is None:
        return MISSING
    return "-".join("1.0" if end >= 0.995 else f"{end:.2f}"[1:] for end in interval)


def as_points(value: float) -> str:
    """
    Write a share as points, of which 100 are everything.

    >>> as_points(0.125), as_points(-0.0001)
    ('12.5', '0.0')
    """
    return f"{100 * (value if abs(value) >= 0.0005 else abs(value)):.1f}"


def points_between(interval: Mapping[str, float]) -> str:
    """
    Write both ends of an interval as points.

    >>> points_between({"low": -0.01, "high": 0.125})
    '-1.0..12.5'
    """
    return f"{as_points(interval['low'])}..{as_points(interval['high'])}"


class Head(NamedTuple):
    """Names a column."""

    title: str
    main: bool = False  # the table is about it
    number: bool = True  # stands to the right


class Column(NamedTuple):
    """Describes a column of numbers: its head, and what it says of a task or a group."""

    head: Head
    cell: Callable[[Entry], str]


class Line(NamedTuple):
    """Describes a row: a task or a mean over tasks, and what results tell of it."""

    title: str
    entry: Entry
    mean: bool = False


def columns_of(results: Results) -> list[Column]:
    """List the columns of numbers that there is something for."""
    tasks = list(results["tasks"].values())
    columns = [Column(Head("n"), lambda entry: str(entry["n"]))]
    if len({task["metric"] for task in tasks}) > 1:
        columns.append(Column(Head("metric"), lambda entry: entry.get("metric", "")))
    if any("majority" in task for task in tasks):
        columns.append(Column(Head("maj."), lambda entry: _number(entry.get("majority"))))
    if any("text_alone" in task for task in tasks):
        columns.append(Column(Head("text"), lambda entry: _number(entry.get("text_alone"))))
    if any("no_image" in task for task in tasks):
        blind = Column(Head("blind"), lambda entry: _number(max(entry.get("no_image", {}).values(), default=None)))
        columns.append(blind)
    for mode in results["config"]["modes"]:
        columns += _columns_of_mode(mode, [task["modes"][mode] for task in tasks])
    return columns


def _columns_of_mode(mode: str, numbers: Sequence[Entry]) -> Iterable[Column]:
    yield Column(Head(mode, main=True), lambda entry: _number(entry["modes"][mode]["score"]))
    if any("interval" in one for one in numbers):
        yield Column(Head("95 %"), lambda entry: ends(entry["modes"][mode].get("interval")))
    queries = reasoning_of(mode)
    if queries == "always":
        yield Column(Head("tokens"), lambda entry: f"{entry['modes'][mode]['mean_reasoning_tokens']:.1f}")
    if queries == "auto":
        yield Column(Head("thinks"), lambda entry: f"{entry['modes'][mode]['invocation_ratio']:.0%}")
    if any(one.get("document_invocation_ratio") for one in numbers):
        yield Column(Head("docs think"), lambda entry: f"{entry['modes'][mode]['document_invocation_ratio']:.0%}")
        yield Column(Head("doc tokens"), lambda entry: f"{entry['modes'][mode]['mean_document_tokens']:.1f}")
    if any(one["seconds_per_query"] is not None for one in numbers):
        yield Column(Head("ms"), lambda entry: _number(entry["modes"][mode]["seconds_per_query"], 1, 1000))


def sections_of(results: Results) -> list[list[Line]]:
    """List the tasks of each of the finest groups with their mean, then the means of wider groups and of all."""
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


def _number(value: float | None, digits: int = 3, factor: int = 1) -> str:
    return MISSING if value is None else f"{factor * value:.{digits}f}"


def results_table(results: Results, title: str | None = None) -> Table:
    """
    Lay out a `rich` table: per task its baselines, then of each mode the score with its 95 % interval, what it costs
    and the time it takes; means at the end of each group and at the end. Columns that no task has are left out.

    Args:
        results: what `run_evaluation` returned.
        title: defaults to the metric's name and "per task".
    """
    metrics = dict.fromkeys(result["metric"] for result in results["tasks"].values())
    default = f"{next(iter(metrics)) if len(metrics) == 1 else 'score'} per task"
    columns = columns_of(results)
    heads = [column.head for column in columns]
    return lined_table(title or default, heads, results, lambda entry: [column.cell(entry) for column in columns])


def lined_table(title: str, heads: Iterable[Head], results: Results, cells: Callable[[Entry], Iterable[str]]) -> Table:
    """
    Lay out a `rich` table with a line per task and per mean over tasks, group by group: `heads` are those of the
    columns after the one with the names, and `cells` says what these hold for a task or a group.
    """
    from rich import box
    from rich.table import Table

    laid_out = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    laid_out.add_column("task", no_wrap=True)
    for head in heads:
        justify: Literal["left", "right"] = "right" if head.number else "left"
        laid_out.add_column(head.title, justify=justify, no_wrap=True, style="bold" if head.main else None)
    for section in sections_of(results):
        for line in section:
            laid_out.add_row(line.title, *cells(line.entry), style="italic" if line.mean else None)
        laid_out.add_section()
    return laid_out


def print_table(table: Table, file: IO[str] | None = None) -> None:
    """Print a table as wide as it is, also where the terminal is narrower. Default: to standard output."""
    from rich.console import Console
    from rich.measure import Measurement

    wide = Console(width=10_000)
    needed = Measurement.get(wide, wide.options, table).maximum
    Console(file=file, width=max(needed, shutil.get_terminal_size().columns)).print(table)


TOLD = {  # of the configuration, in this order
    "dataset": "dataset",
    "split": "split",
    "date": "measured",
    "checkpoint": "checkpoint",
    "seed": "seed",
    "document_reasoning": "reasoning of the candidates",
    "gate_threshold": "gate threshold",
    "max_reasoning_tokens": "rationale budget",
    "max_reasoning_rounds": "rounds of reasoning",
    "limit": "queries per task at most",
    "batch_size": "batch size",
    "versions": "versions",
}
HOW = {
    "95 %": "interval by drawing whole clusters of queries 2,000 times",
    "maj.": "always the task's most frequent training answer",
    "blind": "the better of never and always without the query's pictures",
    "thinks": "share of the queries with a rationale",
    "tokens": "of a rationale",
    "docs think": "share of the candidates with a rationale",
    "doc tokens": "rationale tokens per candidate",
    "ms": "milliseconds per query on the machine that measured; not of what came from a cache",
}


PAIRS = "Of two modes, as in *auto+always*, the first is that of the queries, the second that of the candidates."
ODD_ROWS = "Rows of the benchmark's data, or videos of theirs, that are odd. They are embedded, scored and counted."


def results_markdown(results: Results) -> str:
    """Write means of the groups, the overall where there is one, every task, and how it was measured."""
    config, columns, sections = results["config"], columns_of(results), sections_of(results)
    means = [line for section in sections for line in section if line.mean]
    tasks = [line for section in sections for line in section if not line.mean]
    metrics = ", ".join(dict.fromkeys(task["metric"] for task in results["tasks"].values()))
    titles = {column.head.title for column in columns}
    parts = [
        f"# Evaluation of {config.get('model', 'a model')}",
        f"{results['summary']['all']['n']:,} queries of {len(tasks)} tasks, scored by {metrics}. Scores lie between 0 "
        "and 1, ties count as lost, and means give every task the same weight.",
        f"## Means\n\n{_lines('group', means, columns)}",
        *_overall(results),
        f"## Tasks\n\n{_lines('task', tasks, columns)}",
        PAIRS if any("+" in mode for mode in config["modes"]) else "",
        LOOKS if {mode.partition("+")[0] for mode in config["modes"]} & {*LOOKING} else "",
        "\n".join(f"- *{title}*: {HOW[title]}" for title in HOW if title in titles),
        *_odd_rows(results),
        f"## How it was measured\n\n{table(['', ''], _told(config))}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _lines(what: str, lines: list[Line], columns: list[Column]) -> str:
    rows = ([line.title.removeprefix("mean of "), *(one.cell(line.entry) for one in columns)] for line in lines)
    return table([what, *(one.head.title for one in columns)], rows)


def _overall(results: Results) -> Iterator[str]:
    overall: dict[str, Any] = results.get("overall", {})
    if "refused" in overall:
        yield f"## Overall\n\nNone: {overall['refused']}."
    elif overall:
        rows = ([mode, f"{value:.4f}"] for mode, value in overall.items())
        yield f"## Overall\n\nThe mean over all tasks of the benchmark.\n\n{table(['mode', 'overall'], rows)}"


def odd_rows(results: Results) -> list[list[Any]]:
    """List what was odd about rows of the tasks' data: task, how many, and what."""
    told = ((name, task.get("data", {}).get("odd_rows", {})) for name, task in results["tasks"].items())
    return [[name, count, what] for name, odd in told for what, count in odd.items()]


def _odd_rows(results: Results) -> Iterator[str]:
    if rows := odd_rows(results):
        yield f"## Odd rows\n\n{ODD_ROWS}\n\n{table(['task', 'rows', 'what is odd'], rows)}"


def _told(config: dict[str, Any]) -> Iterator[list[Any]]:
    for name, title in TOLD.items():
        value = config.get(name)
        if value is not None:
            yield [title, ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value]
