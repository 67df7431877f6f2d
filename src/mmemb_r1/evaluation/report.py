"""The results of an evaluation as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from mmemb_r1.evaluation.results import Results

MISSING = "-"
DETAILS = {"always": "tokens", "auto": "thinks"}  # what a mode shows besides its score and time


def results_table(results: Results, title: str = "hit@1 per task") -> Table:
    """A `rich` table: per task its baselines, then hit@1, rationale tokens and time of each mode; means at the end.

    `maj.` always gives the task's most frequent answer; `blind` is the better of the modes without the query's
    picture; `thinks` is the share of queries that thought; `tokens` are those of a rationale; `ms` is milliseconds per
    query.

    Args:
        results: what `evaluate` returned.
        title: defaults to `"hit@1 per task"`.
    """
    modes = results["config"]["modes"]
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("task", no_wrap=True)
    for column in ("n", "maj.", "blind"):
        table.add_column(column, justify="right")
    for mode in modes:
        table.add_column(mode, justify="right", style="bold", no_wrap=True)
        if mode in DETAILS:
            table.add_column(DETAILS[mode], justify="right", no_wrap=True)
        table.add_column("ms", justify="right")
    for complexity in sorted({result["complexity"] for result in results["tasks"].values()}, reverse=True):
        for task, result in results["tasks"].items():
            if result["complexity"] == complexity:
                table.add_row(task, *_cells(result, modes))
        table.add_row(f"mean of {complexity}", *_cells(results["summary"][complexity], modes), style="italic")
        table.add_section()
    table.add_row("mean of all", *_cells(results["summary"]["all"], modes), style="italic")
    return table


def _cells(result: Mapping[str, Any], modes: list[str]) -> list[str]:
    no_image = result.get("no_image") or {}
    cells = [str(result["n"]), _share(result.get("majority")), _share(max(no_image.values(), default=None))]
    for mode in modes:
        numbers = result["modes"][mode]
        cells.append(_share(numbers["hit@1"]))
        if mode == "auto":
            cells.append(f"{numbers['invocation_ratio']:.0%}")
        if mode == "always":
            cells.append(f"{numbers['mean_reasoning_tokens']:.1f}")
        cells.append(f"{1000 * numbers['seconds_per_query']:.1f}")
    return cells


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"
