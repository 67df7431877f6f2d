"""The posterior on Atlas: rationales are scored once by an evaluator, and selected in any way from these scores."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from experiments.atlas_workers.quality import selection_quality
from experiments.atlas_workers.scripted import HELPFUL
from experiments.pipeline.tasks import POOLED
from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config
from mmemb_r1.runs import replaced_file
from mmemb_r1.training.rationales.worker import SIDES
from mmemb_r1.training.selection.config import SelectionOptions
from mmemb_r1.training.selection.evaluator import PairEvaluator
from mmemb_r1.training.selection.select import select_rationales
from mmemb_r1.training.selection.table import with_selection

SHARED = SelectionOptions("counterfactual", wrong_pair_correction=True, space="log-odds", seed=0)
SELECTED, QUALITY = "selected.parquet", "quality.json"  # what was kept, and how good that is
BATCH_SIZE = 16


def score_rationales(
    pairs: Dataset,
    rationales: Dataset,
    evaluator: Path,
    folder: Path,
    part: tuple[int, int] = (1, 1),
    *,
    progress: bool | None = False,
) -> dict[str, Any] | None:
    """
    Score rationales with an evaluator. Its scores are kept in `folder`, as `select_rationales` does.

    Args:
        pairs: the pairs.
        rationales: of these pairs.
        evaluator: its folder, see `evaluator_in`.
        folder: gets the scores, and what counterfactual selection in log-odds makes of them.
        part: `(i, n)`: the i-th of n parts. Default: all.
        progress: show a progress bar on standard error. `None`: if that is a terminal. Default: no.

    Returns:
        The report of that selection; `None` if other parts are still missing.
    """
    return select_rationales(
        pairs, rationales, evaluator_in(evaluator), folder, SHARED, batch_size=BATCH_SIZE, part=part, progress=progress
    )


def evaluator_in(folder: Path) -> PairEvaluator:
    """Load an evaluator: an mmemb-r1 checkpoint compares vectors, another model answers yes or no."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] == MMEmbR1Config.model_type:
        from mmemb_r1.training.selection.embedding_evaluator import EmbeddingEvaluator

        return EmbeddingEvaluator(str(folder), device="cpu")

    from mmemb_r1.training.selection.vlm_evaluator import VLMEvaluator

    return VLMEvaluator(str(folder), device="cpu")


def read_scores(folder: Path) -> pa.Table:
    """
    Read all scores of a folder; the rationales of one side of one pair stand together.

    A folder that holds the scores of several states of its tables is a `ValueError`: here tables do not change.
    """
    states = sorted((folder / "shards").iterdir())
    if len(states) != 1:
        raise ValueError(f"{folder} holds scores of {len(states)} states of its tables; allowed: 1. Score them anew.")
    return pa.concat_tables([pq.read_table(path) for path in sorted(states[0].glob("*.parquet"))])


def merged_scores(scores: pa.Table, others: pa.Table) -> pa.Table:
    """Merge the scores of two sets of rationales for the same pairs, as if they had been scored together."""
    both = pa.concat_tables([scores, others], promote_options="default")
    first: dict[tuple[str, str], int] = {}
    keys = zip(both["pair_id"].to_pylist(), both["side"].to_pylist(), strict=True)
    places = [first.setdefault(key, len(first)) for key in keys]
    return both.take(np.argsort(places, kind="stable"))


def rows_of_workers(table: pa.Table, workers: Collection[str]) -> pa.Table:
    """Keep the rows of some of the workers."""
    return table.filter(pc.is_in(table["worker"], pa.array(list(workers))))


def select_from(scores: pa.Table, options: SelectionOptions, selected: Path) -> pa.Table:
    """Select, and write what is kept; returns all rationales with `kept`, `gain` and the rest."""
    candidates = with_selection(scores, options)
    with replaced_file(selected) as temporary:
        pq.write_table(candidates.filter(candidates["kept"]).drop_columns(["kept", "reason"]), temporary)
    return candidates


def quality_of(candidates: pa.Table, pairs: Dataset, tasks: Collection[str] = POOLED) -> dict[str, Any]:
    """
    Measure how well a selection found the worker that helps: over all rationales, and for each task and side.

    Args:
        candidates: from `select_from`; rationales of other workers than Atlas's are left out.
        pairs: what they are about.
        tasks: of which there are any.

    Returns:
        `all` and `task, side` -> precision (`None` if nothing was kept), recall and the rest of [`Quality`], the share
        of each worker that was `kept`, the number of `inputs` and of `inputs with any kept`.
    """
    known = rows_of_workers(candidates, HELPFUL)
    table = known.select(["pair_id", "side", "worker", "gain", "kept"]).to_pydict()
    task_of = dict(zip(pairs["pair_id"], pairs["task"], strict=True))
    ids, sides, workers, kept = (np.array(table[name]) for name in ("pair_id", "side", "worker", "kept"))
    gain = np.array(table["gain"], dtype=float)
    task = np.array([task_of[pair_id] for pair_id in table["pair_id"]])
    parts = {"all": np.ones(len(gain), dtype=bool)}
    parts |= {f"{name}, {side}": (task == name) & (sides == side) for name in tasks for side in SIDES}
    qualities = {}
    for name, rows in parts.items():
        helpful = [HELPFUL[worker] for worker in workers[rows]]
        if not any(helpful) or all(helpful):
            continue
        groups, with_any = (len({*zip(ids[some], sides[some], strict=True)}) for some in (rows, rows & kept))
        quality = selection_quality(gain[rows], kept[rows].tolist(), helpful)
        qualities[name] = {
            **quality,
            "precision": quality["precision"] if kept[rows].any() else None,
            "kept": {w: float(kept[some].mean()) for w in HELPFUL if (some := rows & (workers == w)).any()},
            "inputs": groups,
            "inputs with any kept": with_any,
        }
    return qualities


def right_share(selected: Path) -> float | None:
    """
    Compute the share of helpful rationales among those that the joint phase draws from a selection. It draws by the
    posterior weight, so this describes what is trained on better than the precision of what is kept does.

    Args:
        selected: what was kept.

    Returns:
        A share of 1, every input counting the same; `None` if nothing was kept, or some of it is by other workers than
        Atlas's, of whom nobody knows.
    """
    table = pq.read_table(selected, columns=["worker", "posterior"])
    right = rows_of_workers(table, [worker for worker, helps in HELPFUL.items() if helps])
    if not len(table) or len(rows_of_workers(table, HELPFUL)) < len(table):
        return None
    return (pc.sum(right["posterior"]).as_py() or 0.0) / pc.sum(table["posterior"]).as_py()


def training_table(selected: Path, pairs: Dataset, pooled: Collection[str] = POOLED) -> Dataset:
    """
    Build the table that the joint phase draws from: selected rationales, and the rehearsed pairs' own ones.

    The latter are the same whatever was selected: they stand for what a pretrained backbone would know.

    Args:
        selected: what was kept of the pool.
        pairs: to train on.
        pooled: tasks whose rationales are selected ones or none.
    """
    columns = ["pair_id", "side", "worker", "text", "posterior"]
    kept = pq.read_table(selected, columns=columns).to_pylist()
    rehearsed = pairs.select_columns(["pair_id", "task", *(f"{side}_rationale" for side in SIDES)])
    own = [
        {"pair_id": row["pair_id"], "side": side, "worker": "own", "text": " ".join(segments), "posterior": 1.0}
        for row in rehearsed
        for side in SIDES
        if row["task"] not in pooled and (segments := row[f"{side}_rationale"])
    ]
    known = set(pairs["pair_id"])
    schema = pa.schema([(name, pa.float32() if name == "posterior" else pa.string()) for name in columns])
    return Dataset(pa.Table.from_pylist([row for row in kept if row["pair_id"] in known] + own, schema=schema))
