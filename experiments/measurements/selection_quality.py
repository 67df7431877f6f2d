"""
Does selection find the rationales that help? On Atlas it is known which ones do: of its workers only one's.

    python -m experiments.measurements.selection_quality --quickstart runs/quickstart [--output runs/selection]

Trains an evaluator from the quickstart's joint checkpoint (`examples/atlas-evaluator*.yaml`), draws rationales for
pairs that it learnt from (train) and for pairs that it did not (policy), lets it score them once, and prints what each
way of selecting makes of the same scores. What is done already is not done again. `drawn` is the share of helpful
rationales among those that the joint phase draws, by posterior weight; the workers' columns are what was kept of each.

`--pool usual` has the four workers of `experiments/quickstart/pool.yaml` and counts all rationales of `correct` as
helpful. `--pool hard` has the eight of `pool-hard.yaml`, and a rationale of `correct` counts only where it adds a fact
that the question needs beyond what the input shows: elsewhere `needless` writes the same (`helps`).

As the quickstart selects, by a checkpoint that compares vectors:

    python -m experiments.measurements.selection_quality --pool hard --evaluator runs/quickstart/warm-up/model \\
        --tasks flag-capital,flag-currency,flag-tld,fact-flag --sides query --pairs 150 \\
        --output runs/selection-hard
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable
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
from experiments.atlas_workers.scripted import BEHAVIOURS, HELPFUL, POOL, helps
from experiments.atlas_workers.worker import recall
from experiments.pipeline.evaluator import EVALUATOR_TASK_WEIGHTS, train_evaluator
from experiments.pipeline.posterior import evaluator_in
from experiments.pipeline.prior import draw_pool
from experiments.pipeline.tasks import of_tasks
from mmemb_r1.atlas import Atlas, load_atlas
from mmemb_r1.runs import write_json
from mmemb_r1.training.rationales.worker import SIDES
from mmemb_r1.training.selection.config import SelectionOptions
from mmemb_r1.training.selection.evaluator import PairEvaluator
from mmemb_r1.training.selection.select import select_rationales

SPLITS = ("train", "policy")
POOLS = {"usual": tuple(POOL), "hard": BEHAVIOURS}
Judge = Callable[[str, str, str], bool]  # a pair's id, a side, a worker -> whether its rationales help
Way = tuple[str, str, bool, str]  # space, selection, whether corrected by wrong pairs, intervention
WAYS: list[Way] = [
    (space, *way)
    for space in ("probability", "log-odds")
    for way in (
        ("none", False, "drop"),
        ("absolute", False, "drop"),
        ("absolute", True, "drop"),
        ("counterfactual", False, "drop"),
        ("counterfactual", True, "drop"),
        ("counterfactual", True, "swap"),
        ("counterfactual", True, "shuffle"),
    )
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--output", type=Path, default=Path("runs/selection"))
    parser.add_argument("--evaluator", type=Path, help="a trained one, or a checkpoint; default: trained here")
    parser.add_argument("--pool", choices=POOLS, default="usual", help="whose rationales; default: usual")
    parser.add_argument("--pairs", type=int, default=400, help="pairs of each split")
    tasks = parser.add_mutually_exclusive_group()
    tasks.add_argument("--tasks", help="comma-separated; default: those that the evaluator was taught")
    tasks.add_argument("--all-tasks", action="store_true", help="also those that the evaluator was not taught")
    parser.add_argument("--sides", choices=SIDES, nargs="+", default=SIDES, help="whose rationales count")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    console = Console(width=190)
    atlas = load_atlas(args.quickstart / "atlas")
    folder = args.evaluator or train_evaluator(atlas, args.quickstart / "joint" / "model", args.output, args.seed)
    evaluator = evaluator_in(folder)
    console.print("evaluator:", evaluator.definition)
    chosen = args.tasks.split(",") if args.tasks else EVALUATOR_TASK_WEIGHTS
    judge = judge_of(args.pool, atlas)
    results: dict[str, Any] = {
        "seed": args.seed,
        "pool": args.pool,
        "sides": args.sides,
        "threads": torch.get_num_threads(),
        "versions": {module.__name__: module.__version__ for module in (torch, transformers)},
    }
    for split in SPLITS:
        known = set(atlas.pairs[split]["task"])
        if unknown := set(chosen) - known:
            parser.error(f"the {split} split has no task {sorted(unknown)}; allowed: {', '.join(sorted(known))}.")
        pairs = some_pairs(atlas.pairs[split], known if args.all_tasks else chosen, args.pairs, args.seed)
        folder = args.output / split / args.pool
        rationales = draw_pool(atlas, pairs, folder / "rationales", args.seed, POOLS[args.pool])
        rationales = rationales.filter(lambda side: side in args.sides, input_columns="side")
        results[split] = measured(pairs, rationales, evaluator, folder, args.seed, judge)
        console.print(as_table(f"{split}: {len(pairs)} pairs, {args.pool} pool", results[split]))
    path = args.output / "results.json"
    write_json(path, results)
    console.print(f"written to {path}")


def judge_of(pool: str, atlas: Atlas) -> Judge:
    """Decide which rationales help: by worker in the usual pool, by worker and question in the hard one."""
    if pool == "usual":
        return lambda _pair_id, _side, worker: POOL[worker]
    _, asked = recall(atlas)
    return lambda pair_id, side, worker: helps(worker, asked[pair_id], side)


def some_pairs(pairs: Dataset, tasks: Collection[str], number: int, seed: int) -> Dataset:
    """A random part of the pairs of some tasks."""
    known = of_tasks(pairs, tasks)
    rows = np.random.default_rng(seed).permutation(len(known))[:number]
    return known.select(np.sort(rows).tolist()).flatten_indices()


def measured(
    pairs: Dataset,
    rationales: Dataset,
    evaluator: PairEvaluator,
    output: Path,
    seed: int,
    judge: Judge,
    ways: Iterable[Way] = WAYS,
) -> list[dict[str, Any]]:
    """The quality of each way to select, from one draw of rationales."""
    rows = []
    for space, selection, corrected, intervention in ways:
        options = SelectionOptions(selection, corrected, intervention, space, seed=seed)
        folder = output / intervention  # each intervention asks the evaluator something else
        report = select_rationales(pairs, rationales, evaluator, folder, options, batch_size=16)
        table = pq.read_table(folder / "candidates.parquet").to_pydict()
        helpful = [judge(*row) for row in zip(table["pair_id"], table["side"], table["worker"], strict=True)]
        gain = np.array(table["gain"], dtype=float)
        if selection == "none":  # ranks nothing
            gain = np.where(np.isnan(gain), gain, 0.0)
        quality = selection_quality(gain, table["kept"], helpful)
        workers, keeps = np.array(table["worker"]), np.array(table["kept"])
        weights = np.array(table["posterior"], dtype=float)[keeps]  # by which the joint phase draws
        drawn = float(weights[np.array(helpful)[keeps]].sum() / weights.sum()) if keeps.any() else None
        kept = {name: float(keeps[workers == name].mean()) for name in HELPFUL if name in workers}
        way = {
            "space": space,
            "selection": selection,
            "wrong_pair_correction": corrected,
            "intervention": intervention,
        }
        rows.append({**way, **quality, "drawn": drawn, "kept": kept, "evaluator": report["evaluator"]["direct"]})
    return rows


def as_table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("space")
    table.add_column("selection", no_wrap=True)
    for name in ("precision", "recall", "AP", "P at R 0.8", "drawn", *rows[0]["kept"]):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = [row[name] for name in ("precision", "recall", "average_precision", "precision_at_recall")]
        corrected = ", corrected" if row["wrong_pair_correction"] else ""
        way = f"{row['selection']}{corrected}, {row['intervention']}"
        numbers += [row["drawn"], *row["kept"].values()]
        table.add_row(row["space"], way, *("-" if number is None else f"{number:.3f}" for number in numbers))
    direct = rows[0]["evaluator"]
    table.caption = (
        f"without a rationale, the target comes before all {direct['negatives']} wrong ones in "
        f"{direct['accuracy']:.1%} of {direct['trials']} trials (chance {direct['chance']:.0%}); "
        f"base rate {rows[0]['base_rate']:.2f}"
    )
    return table


if __name__ == "__main__":
    main()
