"""Report what a selection did: as numbers for JSON, and as text."""

from __future__ import annotations

import dataclasses
import io
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
from datasets import Dataset
from rich import box
from rich.console import Console
from rich.table import Table

from mmemb_r1.file_formats import read_parquet
from mmemb_r1.training.rationales.worker import SIDES
from mmemb_r1.training.selection.config import SelectionOptions
from mmemb_r1.training.selection.pairs import PairIndex
from mmemb_r1.training.selection.table import CANDIDATES, SCORED_AGAIN, group_starts
from mmemb_r1.training.selection.trials import FAILED, positions_in
from mmemb_r1.training.tables import StoredInputs

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
NUM_EXAMPLES = 5
Report = dict[str, Any]


def build_report(
    folder: Path,
    shards: Sequence[Path],
    pairs: Dataset,
    index: PairIndex,
    options: SelectionOptions,
    evaluator: Mapping[str, Any],
) -> Report:
    """
    Sum up a selection from the files that it wrote to `folder`, and from the `shards` of the scores.

    Returns:
        `options` (defaults filled in), `evaluator` (`definition`, `direct`: see `direct_accuracy`), `rows` (see
        `_counts`), `workers` (the same and the quantiles of the gain of each), `inputs` (side -> task -> how many
        inputs have candidates, and how many of them kept none), `gain` (quantiles), `examples` and `warnings`.
    """
    table = read_parquet(folder / CANDIDATES, columns=["pair_id", "side", "worker", "gain", "kept", "reason"])
    gain = table["gain"].to_numpy()  # (N,), NaN where not scored
    workers = {}
    for worker in sorted(pc.unique(table["worker"]).to_pylist()):
        rows = pc.equal(table["worker"], worker)
        workers[worker] = {**_counts(table.filter(rows)), "gain": quantiles(gain[rows.to_numpy()])}
    report = {
        "options": {
            **dataclasses.asdict(options),
            "margin": options.margin_used,
            "temperature": options.temperature_used,
        },
        "evaluator": {"definition": dict(evaluator), "direct": direct_accuracy(*_direct_logits(shards))},
        "rows": _counts(table),
        "workers": workers,
        "inputs": _inputs(table, index),
        "gain": quantiles(gain),
        "examples": _examples(folder / CANDIDATES, table, pairs, index),
    }
    return {**report, "warnings": warnings_of(report)}


def direct_accuracy(
    logits: npt.NDArray[np.float32], negatives: npt.NDArray[np.float32]
) -> dict[str, float | int | bool | None]:
    """
    Measure how good the evaluator is without any rationale.

    Args:
        logits: `(T,)` of the right pairs.
        negatives: `(T, M)` of wrong pairs.

    Returns:
        `trials` T and `negatives` M; `accuracy`, the share of trials in which the right pair beats all wrong ones, and
        its `chance`; `balanced_accuracy` of yes and no (logit above or below 0), the mean over right and wrong pairs;
        `near_chance`, whether the accuracy is within 0.05 or two standard deviations of chance. The last four are
        `None` without negatives.

    >>> direct_accuracy(np.array([2.0, 1.0]), np.array([[-1.0, 1.0], [0.5, -2.0]]))["accuracy"]
    1.0
    """
    trials, number = negatives.shape
    result: dict[str, float | int | bool | None] = {"trials": trials, "negatives": number}
    if trials * number == 0:
        return {**result, **dict.fromkeys(("accuracy", "chance", "balanced_accuracy", "near_chance"))}
    accuracy = float((logits > negatives.max(axis=1)).mean())
    chance = 1 / (number + 1)
    deviation = (chance * (1 - chance) / trials) ** 0.5
    return {
        **result,
        "accuracy": accuracy,
        "chance": chance,
        "balanced_accuracy": float((logits > 0).mean() + (negatives < 0).mean()) / 2,
        "near_chance": accuracy < chance + max(0.05, 2 * deviation),
    }


def quantiles(values: npt.NDArray[np.floating]) -> dict[str, float] | None:
    """Compute the `QUANTILES` of all values but NaN, `None` if there are none."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    return {f"{at:.0%}": float(value) for at, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}


def shown(value: Mapping[str, Any]) -> str:
    """
    Show an input as a line of text.

    >>> shown({"image": ["flag.png"], "text": "capital of this country?"})
    '[image] capital of this country?'
    """
    media = []
    for kind in ("image", "video"):
        given = value.get(kind) or []
        media += [f"[{kind}]"] * (len(given) if isinstance(given, list) else 1)
    return " ".join([*media, *str(value.get("text") or "").split()])


def warnings_of(report: Report) -> list[str]:
    """List what is likely wrong with a selection, and what to do."""
    direct, found = report["evaluator"]["direct"], []
    if direct["near_chance"]:
        found.append(
            f"Without rationales the evaluator tells the right pair from {direct['negatives']} wrong ones in "
            f"{direct['accuracy']:.1%} of the trials, where chance is {direct['chance']:.1%}. As a baseline that "
            "means nothing: counterfactual selection is no better than absolute. Take a stronger evaluator, or train "
            "one (mmemb-r1 train-evaluator)."
        )
    elif direct["balanced_accuracy"] is not None and direct["balanced_accuracy"] < 0.6:
        found.append(
            f"The evaluator puts the right pair first in {direct['accuracy']:.1%} of the trials, but its yes and no "
            f"are right in {direct['balanced_accuracy']:.1%} only: its confidences are off, and differ little. "
            'Gains in log-odds (space="log-odds") still tell rationales apart.'
        )
    if report["rows"]["kept"] == 0:
        found.append("No rationale was kept. Lower the margin, or check whether the evaluator knows the task.")
    for worker, counts in report["workers"].items():
        if counts["scored"] == 0:
            found.append(f"None of the {counts['rows']} rationales of {worker} could be scored.")
    return found


def _counts(table: pa.Table) -> dict[str, Any]:
    """Count rows: `failed` (the worker gave none), not scored for an `other` reason, `scored`, `kept`, and the `share`
    of the scored ones that was kept."""
    scored = table["gain"].is_valid().to_numpy()
    failed = pc.equal(table["reason"], FAILED).fill_null(False).to_numpy()
    kept = table["kept"].to_numpy()
    return {
        "rows": len(table),
        "failed": int(failed.sum()),
        "other": int((~scored & ~failed).sum()),
        "scored": int(scored.sum()),
        "kept": int(kept.sum()),
        "share": float(kept.sum() / scored.sum()) if scored.any() else None,
    }


def _inputs(table: pa.Table, index: PairIndex) -> dict[str, dict[str, dict[str, Any]]]:
    """Count by side and task the inputs with candidates, and those of which none was kept."""
    starts = group_starts(table)
    kept = np.add.reduceat(table["kept"].to_numpy().astype(np.int64), starts)  # (G,)
    first = table.select(["pair_id", "side"]).take(pa.array(starts))
    tasks = np.array(index.tasks)[positions_in(first["pair_id"], index.ids)]
    sides = first["side"].to_numpy()
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for side in SIDES:
        for task in np.unique(tasks[sides == side]).tolist():
            here = kept[(sides == side) & (tasks == task)]
            none = int((here == 0).sum())
            counts = {"inputs": len(here), "none_kept": none, "share": none / len(here)}
            result.setdefault(side, {})[task] = counts
    return result


def _direct_logits(shards: Sequence[Path]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Read the match logits without rationales: `(T,)` of the right pairs, `(T, M)` of the wrong ones."""
    columns = ["pair_id", "side", "logit_direct", "negatives_direct"]
    parts = []
    for shard in shards:
        table = read_parquet(shard, columns=columns, hint=SCORED_AGAIN)
        table = table.filter(table["logit_direct"].is_valid())  # rows that are not scored lack it
        parts.append(table.take(pa.array(group_starts(table))))
    table = pa.concat_tables(parts)
    logits = table["logit_direct"].to_numpy()
    wrong = table["negatives_direct"].to_pylist()
    return logits, np.array(wrong, dtype=np.float32).reshape(len(wrong), len(wrong[0]) if wrong else 0)


def _examples(candidates: Path, table: pa.Table, pairs: Dataset, index: PairIndex) -> dict[str, list[dict[str, Any]]]:
    """Choose the rationales of the largest and of the smallest gain, at most one of an input."""
    gain = table["gain"].to_numpy()
    order = np.argsort(gain, kind="stable")[: int((~np.isnan(gain)).sum())]  # NaN comes last
    group = np.zeros(len(table), dtype=np.int64)
    group[group_starts(table)] = 1
    group = group.cumsum()
    chosen = {"largest": _distinct(order[::-1], group), "smallest": _distinct(order, group)}
    inputs = {side: StoredInputs(pairs, side) for side in SIDES}
    result: dict[str, list[dict[str, Any]]] = {}
    for name, rows in chosen.items():
        found = pyarrow.dataset.dataset(candidates).take(pa.array(rows, pa.int64())).to_pylist()
        fields = ("pair_id", "side", "worker", "text", "confidence_with", "confidence_without", "gain", "kept")
        pair_rows = positions_in(pa.chunked_array([[row["pair_id"] for row in found]], pa.string()), index.ids)
        result[name] = [
            {field: row[field] for field in fields} | {side: shown(inputs[side][int(pair_row)]) for side in SIDES}
            for row, pair_row in zip(found, pair_rows, strict=True)
        ]
    return result


def _distinct(rows: npt.NDArray[np.int64], group: npt.NDArray[np.int64]) -> list[int]:
    """Keep the first few rows, at most one of a group."""
    _, first = np.unique(group[rows], return_index=True)
    return rows[np.sort(first)[:NUM_EXAMPLES]].tolist()


WIDTH = 110
_QUANTILES = ("0%", "25%", "50%", "75%", "100%")
_TITLES = {"largest": "Largest gains", "smallest": "Most negative gains"}


def report_text(report: Report) -> str:
    """Write a report as text, in lines of at most `WIDTH` characters."""
    stream = io.StringIO()
    console = Console(file=stream, width=WIDTH, color_system=None, highlight=False, markup=False, emoji=False)
    for line in _head(report):
        console.print(textwrap.fill(line, WIDTH, subsequent_indent="    "))
    console.print("\nRationales by worker. Share: kept of those scored. Last columns: quantiles of the gain.")
    console.print(_worker_table(report))
    console.print("Inputs (a side of a pair) of which none was kept; they are trained without a rationale.")
    console.print(_input_table(report))
    for name, title in _TITLES.items():
        console.print(title)
        for example in report["examples"][name]:
            console.print("\n".join(_example(example)), end="\n\n")
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _head(report: Report) -> Iterator[str]:
    rows, direct = report["rows"], report["evaluator"]["direct"]
    yield f"Kept {rows['kept']:,} of {rows['scored']:,} rationales scored ({_percent(rows['share'])})."
    if rows["failed"] or rows["other"]:
        yield f"Of {rows['rows']:,} in all, {rows['failed']:,} had failed and {rows['other']:,} could not be scored."
    yield "Options: " + ", ".join(f"{name}={value}" for name, value in report["options"].items())
    yield f"Evaluator: {json.dumps(report['evaluator']['definition'], ensure_ascii=False):.1000}"
    if direct["accuracy"] is not None:
        yield (
            f"Without rationales it puts the right pair before all {direct['negatives']} wrong ones in "
            f"{_percent(direct['accuracy'])} of {direct['trials']:,} trials (chance: {_percent(direct['chance'])}); "
            f"balanced accuracy of its yes and no: {_percent(direct['balanced_accuracy'])}."
        )
    for warning in report["warnings"]:
        yield f"WARNING: {warning}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number > 0, overflow="fold")
    return table


def _worker_table(report: Report) -> Table:
    table = _table("worker", "rows", "failed", "other", "scored", "kept", "share", *_QUANTILES)
    for name, counts in [*report["workers"].items(), ("all", {**report["rows"], "gain": report["gain"]})]:
        if name == "all":
            table.add_section()
        numbers = [f"{counts[key]:,}" for key in ("rows", "failed", "other", "scored", "kept")]
        gains = [f"{counts['gain'][name]:+.3f}" for name in _QUANTILES] if counts["gain"] else []
        table.add_row(name, *numbers, _percent(counts["share"]), *gains)
    return table


def _input_table(report: Report) -> Table:
    table = _table("side", "task", "inputs", "none kept", "share")
    table.columns[1].justify = "left"
    for side, tasks in report["inputs"].items():
        for task, counts in tasks.items():
            numbers = [f"{counts[key]:,}" for key in ("inputs", "none_kept")]
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
