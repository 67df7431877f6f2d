"""
Does selection find the rationales that help? On Atlas it is known which ones do: of its four workers only one does.

    python -m experiments.measurements.selection_quality --quickstart runs/quickstart [--output runs/selection]

Trains an evaluator from the quickstart's joint checkpoint (`examples/atlas-evaluator*.yaml`), draws rationales for
pairs that it learnt from and for pairs that it did not (`experiments/quickstart/pool.yaml`), lets it score them once,
and prints what each way of selecting makes of the same scores. What is done already is not done again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers
from datasets import Dataset
from rich.console import Console
from rich.table import Table

from experiments.atlas_workers.quality import selection_quality
from experiments.atlas_workers.scripted import HELPFUL
from experiments.pipeline.evaluator import EVALUATOR_TASK_WEIGHTS, train_evaluator
from experiments.pipeline.prior import draw_pool
from experiments.pipeline.tasks import of_tasks
from mmemb_r1.atlas import Atlas, load_atlas
from mmemb_r1.runs import write_json
from mmemb_r1.training.selection.config import SelectionOptions
from mmemb_r1.training.selection.evaluator import PairEvaluator
from mmemb_r1.training.selection.select import select_rationales
from mmemb_r1.training.selection.vlm_evaluator import VLMEvaluator

SPLITS = {"train": "learnt from", "policy": "not learnt from"}
WAYS = [
    ("none", False, "drop"),
    ("absolute", False, "drop"),
    ("absolute", True, "drop"),
    ("counterfactual", False, "drop"),
    ("counterfactual", True, "drop"),
    ("counterfactual", True, "swap"),
    ("counterfactual", True, "shuffle"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--output", type=Path, default=Path("runs/selection"))
    parser.add_argument("--evaluator", type=Path, help="a trained one; default: trained here")
    parser.add_argument("--pairs", type=int, default=400, help="pairs of each split")
    parser.add_argument("--all-tasks", action="store_true", help="also those that the evaluator was not taught")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    console = Console(width=118)
    atlas = load_atlas(args.quickstart / "atlas")
    folder = args.evaluator or train_evaluator(atlas, args.quickstart / "joint" / "model", args.output, args.seed)
    console.print("evaluator:", json.loads((folder / "evaluator.json").read_text(encoding="utf-8")))
    evaluator = VLMEvaluator(str(folder), device="cpu")
    taught = set(EVALUATOR_TASK_WEIGHTS)
    results: dict[str, Any] = {
        "seed": args.seed,
        "threads": torch.get_num_threads(),
        "versions": {module.__name__: module.__version__ for module in (torch, transformers)},
    }
    for split, meaning in SPLITS.items():
        tasks = set(atlas.pairs[split]["task"]) if args.all_tasks else taught
        pairs = some_pairs(atlas.pairs[split], tasks, args.pairs, args.seed)
        results[split] = measured(pairs, atlas, evaluator, args.output / split, args.seed)
        console.print(as_table(f"{split}: {len(pairs)} pairs that the evaluator has {meaning}", results[split]))
    path = args.output / "results.json"
    write_json(path, results)
    console.print(f"written to {path}")


def some_pairs(pairs: Dataset, tasks: set[str], number: int, seed: int) -> Dataset:
    """A random part of the pairs of some tasks."""
    known = of_tasks(pairs, tasks)
    rows = np.random.default_rng(seed).permutation(len(known))[:number]
    return known.select(np.sort(rows).tolist()).flatten_indices()


def measured(pairs: Dataset, atlas: Atlas, evaluator: PairEvaluator, output: Path, seed: int) -> list[dict[str, Any]]:
    """The quality of each way to select, from one draw of rationales."""
    rationales = draw_pool(atlas, pairs, output / "rationales", seed)
    rows = []
    for space in ("probability", "log-odds"):
        for selection, corrected, intervention in WAYS:
            options = SelectionOptions(selection, corrected, intervention, space, seed=seed)
            folder = output / intervention  # each intervention asks the evaluator something else
            report = select_rationales(pairs, rationales, evaluator, folder, options, batch_size=16)
            table = pq.read_table(folder / "candidates.parquet").to_pydict()
            helpful = [HELPFUL[worker] for worker in table["worker"]]
            gain = np.array(table["gain"], dtype=float)
            if selection == "none":  # ranks nothing
                gain = np.where(np.isnan(gain), gain, 0.0)
            quality = selection_quality(gain, table["kept"], helpful)
            workers, keeps = np.array(table["worker"]), np.array(table["kept"])
            kept = {name: float(keeps[workers == name].mean()) for name in HELPFUL}
            way = {
                "space": space,
                "selection": selection,
                "wrong_pair_correction": corrected,
                "intervention": intervention,
            }
            rows.append({**way, **quality, "kept": kept, "evaluator": report["evaluator"]["direct"]})
    return rows


def as_table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("space")
    table.add_column("selection", no_wrap=True)
    for name in ("precision", "recall", "AP", "P at R 0.8", *HELPFUL):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = [row[name] for name in ("precision", "recall", "average_precision", "precision_at_recall")]
        corrected = ", corrected" if row["wrong_pair_correction"] else ""
        way = f"{row['selection']}{corrected}, {row['intervention']}"
        numbers += row["kept"].values()
        table.add_row(row["space"], way, *(f"{number:.3f}" for number in numbers))
    direct = rows[0]["evaluator"]
    table.caption = (
        f"without a rationale, the target comes before all {direct['negatives']} wrong ones in "
        f"{direct['accuracy']:.1%} of {direct['trials']} trials (chance {direct['chance']:.0%}); "
        f"base rate {rows[0]['base_rate']:.2f}"
    )
    return table


if __name__ == "__main__":
    main()
