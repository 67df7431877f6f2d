"""Lay out results as lines and columns of text, whatever they are written as."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmemb_r1.evaluation.run_folder import Results
from mmemb_r1.evaluation.tasks import ALL

MISSING = "-"


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
    return f"{100 * value:.1f}".replace("-0.0", "0.0") if abs(value) < 0.0005 else f"{100 * value:.1f}"


def points_between(interval: Mapping[str, float]) -> str:
    """
    Write both ends of an interval as points.

    >>> points_between({"low": -0.01, "high": 0.125})
    '-1.0..12.5'
    """
    return f"{as_points(interval['low'])}..{as_points(interval['high'])}"


FIRST_GROUP = "simple"  # of Atlas: what needs no rationale comes before what does
Entry = Mapping[str, Any]  # what results tell of a task or of a group


@dataclass(frozen=True)
class Column:
    """Describes a column of numbers: what it says of a task or a group, and whether the table is about it."""

    title: str
    cell: Callable[[Entry], str]
    main: bool = False


@dataclass(frozen=True)
class Line:
    """Describes a row: a task or a mean over tasks, and what results tell of it."""

    title: str
    entry: Entry
    mean: bool = False


def columns_of(results: Results) -> list[Column]:
    """List the columns of numbers that there is something for."""
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


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _milliseconds(seconds: float | None) -> str:
    return MISSING if seconds is None else f"{1000 * seconds:.1f}"
