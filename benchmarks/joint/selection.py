"""One pool of rationales, judged once, selected twice: counterfactually and not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset

from joint.data import POOLED, of_tasks
from mmemb_r1._files import replaced_file
from mmemb_r1.atlas import Atlas
from mmemb_r1.atlas.thoughts import HELPFUL
from mmemb_r1.training.posterior.options import SelectionOptions
from mmemb_r1.training.posterior.quality import selection_quality
from mmemb_r1.training.posterior.select import select_rationales
from mmemb_r1.training.posterior.vlm_evaluator import VLMEvaluator
from mmemb_r1.training.prior.atlas_worker import AtlasWorker
from mmemb_r1.training.prior.draw import draw_rationales
from mmemb_r1.training.prior.shards import read_rationales

SEED, NUM_SAMPLES = 0, 2  # as in examples/atlas-pool.yaml
WAYS = {
    "selected": SelectionOptions("counterfactual", pair_aware=True, space="log-odds", seed=SEED),
    "unselected": SelectionOptions("none", seed=SEED),
}
SIDES = ("query", "target")


def table_path(output: Path, way: str) -> Path:
    """Where the rationales are that a way of selecting kept."""
    return output / "selection" / f"{way}.parquet"


def select_both(atlas: Atlas, output: Path, evaluator: Path, part: tuple[int, int] = (1, 1)) -> dict[str, Any] | None:
    """
    Draw the four workers' rationales for the multi-hop pairs of `train`, judge them, and select.

    Args:
        atlas: the Atlas.
        output: the experiment's folder. Gets `selection/pool`, `selection/scores`, a table per way of selecting
            (`table_path`) and `selection/quality.json`.
        evaluator: its folder.
        part: `(i, n)`: judge the i-th of n parts. Default: all.

    Returns:
        What is in `quality.json`: way -> `all`, and the same numbers for each task and side (`task, side`). `None` if
        other parts are still to be judged.
    """
    folder = output / "selection"
    pairs = of_tasks(atlas.pairs["train"], POOLED)
    workers = [AtlasWorker(name, atlas.directory, name, num_samples=NUM_SAMPLES) for name in HELPFUL]
    draw_rationales(pairs, workers, folder / "pool", seed=SEED)
    rationales = read_rationales(folder / "pool")
    judge = VLMEvaluator(str(evaluator), device="cpu")
    qualities = {}
    for way, options in WAYS.items():  # the second one judges nothing: the scores are there
        if not select_rationales(pairs, rationales, judge, folder / "scores", options, batch_size=16, part=part):
            return None
        qualities[way] = _quality(folder / "scores" / "candidates.parquet", pairs)
        with replaced_file(table_path(output, way)) as temporary:
            shutil.copy(folder / "scores" / "selected.parquet", temporary)
    with replaced_file(folder / "quality.json") as temporary:
        temporary.write_text(json.dumps(qualities, indent=2) + "\n", encoding="utf-8")
    return qualities


def _quality(candidates: Path, pairs: Dataset) -> dict[str, Any]:
    """Of all rationales and of each task and side: precision, recall, ..., and the share of each worker kept."""
    table = pq.read_table(candidates, columns=["pair_id", "side", "worker", "gain", "kept"]).to_pydict()
    task_of = dict(zip(pairs["pair_id"], pairs["task"], strict=True))
    ids, sides, workers, kept = (np.array(table[name]) for name in ("pair_id", "side", "worker", "kept"))
    gain = np.array(table["gain"], dtype=float)
    tasks = np.array([task_of[pair_id] for pair_id in table["pair_id"]])
    parts = {"all": np.ones(len(gain), dtype=bool)}
    parts |= {f"{task}, {side}": (tasks == task) & (sides == side) for task in POOLED for side in SIDES}
    qualities = {}
    for name, rows in parts.items():
        if not rows.any():
            continue
        helpful = [HELPFUL[worker] for worker in workers[rows]]
        groups, with_any = (len({*zip(ids[some], sides[some], strict=True)}) for some in (rows, rows & kept))
        qualities[name] = {
            **selection_quality(gain[rows], kept[rows], helpful),
            "kept": {worker: float(kept[rows & (workers == worker)].mean()) for worker in HELPFUL},
            "inputs": groups,
            "inputs with any kept": with_any,
        }
    return qualities
