"""Draw the report of a selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmemb_r1.file_formats import read_parquet
from mmemb_r1.runs import replaced_file
from mmemb_r1.training.selection.report import Report
from mmemb_r1.training.selection.table import CANDIDATES

KEPT, LEFT, FAILED, SIDES = "#1a7f37", "#c9d1d9", "#8c2f39", {"query": "#33658a", "target": "#c77d2b"}
MAX_TASKS = 20
_GREY = "#57606a"


def draw_report(report: Report, folder: Path, path: Path) -> None:
    """Draw what became of each worker's rationales (in `folder`), how their gains are distributed, and where none was
    kept; an `ImportError` names the extra that brings matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'mmemb-r1[atlas]'") from error
    workers = list(report["workers"])
    tasks = _worst_tasks(report["inputs"])
    height = max(0.62 * len(workers) + 1.9, 0.36 * len(tasks) + 1.9, 3.4)
    figure = Figure(figsize=(15, height), layout="constrained")
    counts, spread, none = figure.subplots(1, 3, width_ratios=(1.05, 1, 1))
    _draw_counts(counts, report["workers"])
    _draw_gains(spread, report, _gains_by_worker(folder / CANDIDATES, workers))
    _draw_none_kept(none, report["inputs"], tasks)
    options, rows = report["options"], report["rows"]
    figure.legend(loc="outside lower left", ncols=5, fontsize=9, frameon=False)
    corrected = ", wrong-pair correction" if options["wrong_pair_correction"] else ""
    figure.suptitle(
        f"{rows['kept']:,} of {rows['scored']:,} rationales kept: {options['selection']}{corrected}, "
        f"{options['intervention']}, {options['space']}",
        fontsize=13,
        x=0.01,
        ha="left",
    )
    with replaced_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _gains_by_worker(candidates: Path, workers: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """Read the gains of each worker: of the kept rationales, and of the others."""
    table = read_parquet(candidates, columns=["worker", "gain", "kept"])
    gain, names, kept = (table[name].to_numpy() for name in ("gain", "worker", "kept"))
    left = ~kept & ~np.isnan(gain)
    return [{KEPT: gain[(names == worker) & kept], LEFT: gain[(names == worker) & left]} for worker in workers]


def _draw_counts(axis: Any, workers: Mapping[str, Mapping[str, Any]]) -> None:
    rows = np.arange(len(workers))
    start = np.zeros(len(workers))
    parts = {
        "kept": (KEPT, [counts["kept"] for counts in workers.values()]),
        "left out": (LEFT, [counts["scored"] - counts["kept"] for counts in workers.values()]),
        "failed or not scored": (FAILED, [counts["failed"] + counts["other"] for counts in workers.values()]),
    }
    for label, (color, widths) in parts.items():
        if any(widths):
            axis.barh(rows, widths, left=start, color=color, label=label, height=0.62)
        start += widths
    for row, counts in zip(rows, workers.values(), strict=True):
        share = "none scored" if counts["share"] is None else f"{counts['share']:.0%} kept"
        axis.text(counts["rows"], row, f" {share}", va="center", fontsize=9, color=_GREY)
    axis.set_yticks(rows, [_short(worker) for worker in workers])
    axis.set_ylim(-0.5, len(workers) - 0.5)
    axis.set_xlim(0, 1.22 * max(counts["rows"] for counts in workers.values()))
    _finish(axis, "What became of each worker's rationales", "rationales")


def _draw_gains(axis: Any, report: Report, gains: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Draw a histogram per worker, each in a band of its own and as high as its fullest bin."""
    margin = report["options"]["margin"]
    everything = np.concatenate([np.array([margin]), *(values for parts in gains for values in parts.values())])
    low, high = np.quantile(everything, [0.001, 0.999])  # a few far ones would flatten the others
    width = max(max(high, margin) - min(low, margin), 1e-3) / 60
    first, last = np.floor((min(low, margin) - margin) / width), np.ceil((max(high, margin) - margin) / width)
    edges = margin + width * np.arange(first - 1, last + 2)  # the margin lies between two bins
    for place, parts in enumerate(gains):
        heights = {color: np.histogram(values.clip(low, high), edges)[0] for color, values in parts.items()}
        tallest = max(np.sum(list(heights.values()), axis=0).max(), 1)
        top = np.full(len(edges) - 1, place + 0.4)
        for color, counts in heights.items():
            top = top - 0.8 * counts / tallest
            axis.bar(edges[:-1], 0.8 * counts / tallest, width, bottom=top, align="edge", color=color)
        axis.axhline(place + 0.4, color=LEFT, linewidth=0.8)
    keeps_all = report["options"]["selection"] == "none"
    axis.axvline(margin, color=_GREY, linewidth=1, linestyle="--")
    axis.set_yticks([])  # the workers are those of the panel on the left, at the same height
    axis.set_ylim(-0.5, len(gains) - 0.5)
    unit = "confidence" if report["options"]["selection"] == "absolute" else "gain"
    label = f"{unit} in {report['options']['space']}" + ("" if keeps_all else f"; dashed: margin {margin:g}")
    _finish(axis, f"{unit.capitalize()}s (each worker to its own scale)", label)


def _worst_tasks(inputs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Sort the tasks by the share of inputs of which none was kept, the largest first."""
    total: dict[str, np.ndarray] = {}
    for tasks in inputs.values():
        for task, counts in tasks.items():
            total[task] = total.get(task, np.zeros(2)) + [counts["none_kept"], counts["inputs"]]
    return sorted(total, key=lambda task: (-total[task][0] / total[task][1], task))[:MAX_TASKS]


def _draw_none_kept(axis: Any, inputs: Mapping[str, Mapping[str, Mapping[str, Any]]], tasks: Sequence[str]) -> None:
    thick = 0.76 / len(inputs)
    for number, (side, counts) in enumerate(inputs.items()):
        there = [place for place, task in enumerate(tasks) if task in counts]
        shares = [counts[tasks[place]]["share"] for place in there]
        at = np.array(there) + thick * (number - (len(inputs) - 1) / 2)
        axis.barh(at, shares, thick, color=SIDES[side], label=f"{side} side")
        for place, share in zip(at, shares, strict=True):
            axis.text(share, place, f" {share:.0%}", va="center", fontsize=8, color=_GREY)
    axis.set_yticks(range(len(tasks)), [_short(task) or "all" for task in tasks])
    axis.set_ylim(-0.5, len(tasks) - 0.5)
    axis.set_xlim(0, 1.12)
    axis.set_xticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)])
    hidden = len({task for counts in inputs.values() for task in counts}) - len(tasks)
    _finish(
        axis, "Inputs of which no rationale was kept", f"share per task{f' ({hidden} tasks more)' if hidden else ''}"
    )


def _finish(axis: Any, title: str, label: str) -> None:
    axis.invert_yaxis()
    axis.set_title(title, fontsize=11, loc="left")
    axis.set_xlabel(label, fontsize=9)
    axis.tick_params(labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _short(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:25]}…"
