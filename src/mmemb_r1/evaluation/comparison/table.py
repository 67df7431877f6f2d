"""A comparison of two evaluations as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmemb_r1.evaluation.reports.cells import points, points_between
from mmemb_r1.evaluation.reports.terminal import Head, lined_table

if TYPE_CHECKING:
    from rich.table import Table

ALPHA = 0.05  # p values below it are called significant


def paired_table(comparison: Mapping[str, Any]) -> Table:
    """
    A `rich` table: per task, group and over all both scores, what B gains over A in points with the 95 % interval, the
    share of draws in which it gains, and p values, of tasks also corrected for their number.

    Args:
        comparison: one of `comparisons` of what `compare_runs` returned.
    """
    modes = comparison["mode_a"], comparison["mode_b"]
    title = f"B - A, {modes[0]}" if modes[0] == modes[1] else f"{modes[1]} of B - {modes[0]} of A"
    names = ("n", "A", "B", "B - A", "95 %", "B > A in", "p", "p (Holm)")
    return lined_table(title, [Head(name, main=name == "B - A") for name in names], dict(comparison), _cells)


def _cells(entry: Mapping[str, Any]) -> list[str]:
    difference = entry["difference"]
    return [
        str(entry["n"]),
        f"{entry['a']:.3f}",
        f"{entry['b']:.3f}",
        points(difference["mean"]),
        points_between(difference),
        f"{entry['above']:.1%}",
        f"{entry['p']:.4f}",
        f"{entry['p_holm']:.4f}" if "p_holm" in entry else "",
    ]


def remark(comparison: Mapping[str, Any]) -> str:
    """
    How many tasks differ, and what that is worth.

    >>> one = {"p": 0.01, "p_holm": 0.02}
    >>> remark({"tasks": {"fact": one, "flag": {"p": 0.04, "p_holm": 0.08}}})
    '2 of 2 tasks have p < 0.05, of which chance alone would give 0.1; 1 after the correction for that (Holm).'
    """
    tasks = comparison["tasks"].values()
    raw, corrected = (sum(entry[key] < ALPHA for entry in tasks) for key in ("p", "p_holm"))
    return (
        f"{raw} of {len(tasks)} tasks have p < {ALPHA}, of which chance alone would give {ALPHA * len(tasks):.1f}; "
        f"{corrected} after the correction for that (Holm)."
    )
