"""The report of a selection, to be read."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mmemb_r1.training.posterior.report import Report

WIDTH = 110
_QUANTILES = ("0%", "25%", "50%", "75%", "100%")
_TITLES = {"largest": "Largest gains", "smallest": "Most negative gains"}


def report_text(report: Report) -> str:
    """A report as text, in lines of at most 110 characters."""
    stream = io.StringIO()
    console = Console(file=stream, width=WIDTH, color_system=None, highlight=False, markup=False, emoji=False)
    for line in _head(report):
        console.print(textwrap.fill(line, WIDTH, subsequent_indent="    "))
    console.print("\nRationales by worker. Share: kept of those judged. Gain: quantiles.")
    console.print(_workers(report))
    console.print("Inputs (a side of a pair) of which nothing was kept; they train without a rationale.")
    console.print(_inputs(report))
    for name, title in _TITLES.items():
        console.print(title)
        for example in report["examples"][name]:
            console.print("\n".join(_example(example)), end="\n\n")
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _head(report: Report) -> Iterator[str]:
    rows, direct = report["rows"], report["evaluator"]["direct"]
    yield f"Kept {rows['kept']:,} of {rows['judged']:,} rationales judged ({_percent(rows['share'])})."
    if rows["failed"] or rows["other"]:
        yield f"Of {rows['rows']:,} in all, {rows['failed']:,} had failed and {rows['other']:,} could not be judged."
    yield "Options: " + ", ".join(f"{name}={value}" for name, value in report["options"].items())
    yield f"Evaluator: {json.dumps(report['evaluator']['definition'], ensure_ascii=False):.1000}"
    if direct["accuracy"] is not None:
        yield (
            f"Without rationales it puts the partner before all {direct['negatives']} wrong ones in "
            f"{_percent(direct['accuracy'])} of {direct['trials']:,} trials (chance: {_percent(direct['chance'])}); "
            f"balanced accuracy of its yes and no: {_percent(direct['balanced_accuracy'])}."
        )
    for warning in report["warnings"]:
        yield f"WARNING: {warning}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right", no_wrap=place > 0, overflow="fold")
    return table


def _workers(report: Report) -> Table:
    table = _table("worker", "rows", "failed", "other", "judged", "kept", "share", *_QUANTILES)
    for name, counts in [*report["workers"].items(), ("all", {**report["rows"], "gain": report["gain"]})]:
        if name == "all":
            table.add_section()
        numbers = [f"{counts[key]:,}" for key in ("rows", "failed", "other", "judged", "kept")]
        gains = [f"{counts['gain'][name]:+.3f}" for name in _QUANTILES] if counts["gain"] else []
        table.add_row(name, *numbers, _percent(counts["share"]), *gains)
    return table


def _inputs(report: Report) -> Table:
    table = _table("side", "task", "inputs", "nothing kept", "share")
    table.columns[1].justify = "left"
    for side, tasks in report["inputs"].items():
        for task, counts in tasks.items():
            numbers = [f"{counts[key]:,}" for key in ("inputs", "nothing_kept")]
            table.add_row(side, task or "-", *numbers, _percent(counts["share"]))
        table.add_section()
    return table


def _example(example: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{example['gain']:+.3f}  {example['worker']}, on the {example['side']} of {example['pair_id']}; confidence "
        f"{example['confidence_without']:.3f} -> {example['confidence_with']:.3f}"
    )
    for name, text in (("query", example["query"]), ("target", example["target"]), ("rationale", example["text"])):
        short = textwrap.shorten(" ".join(text.split()), 300, placeholder=" ...")
        yield textwrap.fill(short, WIDTH, initial_indent=f"    {name + ':':11}", subsequent_indent=" " * 15)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
