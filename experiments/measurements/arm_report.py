"""Show the summary as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from experiments.measurements.arm_summary import GROUPS


def tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    """Levels, differences, paths and depth of what `summarise` gave, as far as they are there."""
    yield levels(summary)
    if summary["differences"]:
        yield differences(summary["differences"])
    if summary["paths"]:
        yield paths(summary["paths"])
    for arm, splits in summary["depth"].items():
        for split, numbers in splits.items():
            yield depth(f"{arm}, {split}: R@1 of the neighbour tasks after each rationale", numbers)


def levels(summary: Mapping[str, Any]) -> Table:
    columns = ("never", "always", "right")
    table = Table(title=f"R@1 on {summary['split']}, means over seeds; right: rationales that state all right facts")
    table.add_column("arm", no_wrap=True)
    table.add_column("seeds")
    for group in GROUPS:
        for column in columns:
            table.add_column(f"{group}\n{column}", justify="right")
    for arm, numbers in summary["arms"].items():
        cells = [
            f"{numbers[group][column]['mean']:.1%}" for group in GROUPS for column in ("never", "always", "right")
        ]
        table.add_row(arm, " ".join(map(str, numbers["seeds"])), *cells)
    return table


def differences(rows: list[Mapping[str, Any]]) -> Table:
    table = Table(title="differences in points, with 95 % intervals clustered by country")
    for name in ("difference", "mode", "tasks", "points", "95 %", "by seed", "countries", "queries"):
        table.add_column(name, justify="left" if name in ("difference", "mode", "tasks") else "right")
    for row in rows:
        table.add_row(
            row["difference"],
            row["mode"],
            row["tasks"],
            *points(row),
            " ".join(f"{100 * value:+.1f}" for value in row["by seed"]),
            str(row["clusters"]),
            str(row["queries"]),
        )
    return table


def paths(arms: Mapping[str, Any]) -> Table:
    table = Table(title="one space: R@1 per query/candidate path where targets are pictures; mixed minus matched")
    first = next(iter(arms.values()))["both"]
    table.add_column("arm", no_wrap=True)
    table.add_column("tasks")
    for path in first["R@1"]:
        table.add_column(path, justify="right")
    for path in first["minus matched"]:
        table.add_column(f"{path}\nminus matched", justify="right")
    for arm, parts in arms.items():
        for part, numbers in parts.items():
            gaps = (" ".join(points(number)) for number in numbers["minus matched"].values())
            table.add_row(arm, part, *(f"{level['mean']:.1%}" for level in numbers["R@1"].values()), *gaps)
    return table


def depth(title: str, numbers: Mapping[str, Any]) -> Table:
    table = Table(title=title)
    table.add_column("rounds")
    table.add_column("R@1", justify="right")
    table.add_column("added", justify="right")
    gains = ["", *(" ".join(points(gain)) for gain in numbers["gains"].values())]
    for (name, level), gain in zip(numbers["R@1"].items(), gains, strict=True):
        table.add_row(name, f"{level['mean']:.1%}", gain)
    return table


def points(number: Mapping[str, float]) -> tuple[str, str]:
    """
    >>> points({"mean": 0.058, "low": 0.031, "high": 0.09})
    ('+5.8', '[+3.1, +9.0]')
    """
    mean, low, high = (100 * number[name] for name in ("mean", "low", "high"))
    return f"{mean:+.1f}", f"[{low:+.1f}, {high:+.1f}]"
