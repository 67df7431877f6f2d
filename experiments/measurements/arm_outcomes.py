"""Evaluate one trained arm on a split, query by query."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset

from experiments.measurements.arms import ARMS
from experiments.pipeline.outcomes import BATCH_SIZE, MODES, PLAIN, Columns, hits, states_all, vectors_of, whose
from experiments.pipeline.tasks import MULTI_HOP, NEIGHBOURS, PICTURE_TARGETS, of_tasks
from mmemb_r1 import MMEmbR1
from mmemb_r1.atlas import Atlas
from mmemb_r1.content import inputs_of
from mmemb_r1.evaluation.atlas_tasks import embed_candidates
from mmemb_r1.modeling.backbones_mmemb_r1 import model_inputs
from mmemb_r1.runs import replaced_file

# What of the warm-up is still there: names of pictures, and facts as text.
REMEMBERED = (
    "picture-name-flag",
    *(f"fact-{relation}" for relation in ("capital", "region", "currency", "language", "tld", "largest-neighbour")),
)
DEPTH_SPLIT = "validation"
NUM_EXAMPLES = 3


def result_path(run: Path, arm: str, seed: int, split: str) -> Path:
    """Name the file of the outcomes of one model."""
    return run / "evaluations" / f"{arm}-{seed}-{split}.json"


def measure_arm(atlas: Atlas, run: Path, arm: str, seed: int, split: str) -> bool:
    """
    Evaluate one trained arm, query by query.

    Writes `result_path`, an object with `arm`, `seed`, `split`, some rationales of each task as `examples`, and tables
    with a row per query and the columns `pair_id`, `task`, `entity` (what it is about), and whether the target came
    first (0 or 1):

    - `outcomes`: without (`never`) and with a rationale (`always`), among candidates that are embedded directly; also
      `right`, whether the rationale states every fact of the right one, and its `tokens`;
    - `paths`, on the tasks whose targets are pictures: per `query mode/candidate mode`;
    - `depth`, for arms that learnt chains: split -> a table of the neighbour tasks, per `z0`, `z1`, ...

    Args:
        atlas: whose questions are asked.
        run: the folder of the arms.
        arm: a key of `ARMS`.
        seed: of the arm.
        split: of the Atlas.

    Returns:
        Whether it was evaluated; `False` if that was done already.

    Raises:
        ValueError: if the arm is not trained.
    """
    path, folder = result_path(run, arm, seed, split), run / "arms" / f"{arm}-{seed}"
    if path.exists():
        return False
    if not folder.exists():
        raise ValueError(f"there is no {folder}; run --stages joint first")
    model, rounds = MMEmbR1(str(folder), device="cpu"), ARMS[arm].rounds
    pairs = of_tasks(atlas.pairs[split], {*MULTI_HOP, *REMEMBERED, *PICTURE_TARGETS})
    direct = embed_candidates(model, atlas.candidates, set(pairs["candidate_set"]), BATCH_SIZE)
    vectors, explained = embedded(model, pairs["query"], rounds)
    result: dict[str, Any] = {"arm": arm, "seed": seed, "split": split}
    result["outcomes"] = {
        **whose(pairs),
        **{mode: hits(pairs, vectors[mode], direct) for mode in MODES},
        "right": states_all(pairs["query_rationale"], [one["rationale"] for one in explained]),
        "tokens": [one["num_reasoning_tokens"] for one in explained],
    }
    rows = [row for row, task in enumerate(pairs["task"]) if task in PICTURE_TARGETS]
    targets = {"never": direct, "always": embed_candidates(model, atlas.candidates, {"picture"}, BATCH_SIZE, "always")}
    seen = pairs.select(rows)
    paths = {f"{a}/{b}": hits(seen, vectors[a][rows], targets[b]) for a in MODES for b in MODES}
    result["paths"] = {**whose(seen), **paths}
    if rounds > 1:
        splits = dict.fromkeys((DEPTH_SPLIT, split))
        result["depth"] = {name: depth(model, atlas.pairs[name], atlas.candidates, rounds) for name in splits}
    result["examples"] = {
        task: [one["rationale"] for one, its in zip(explained, pairs["task"], strict=True) if its == task][
            :NUM_EXAMPLES
        ]
        for task in sorted(set(pairs["task"]))
    }
    with replaced_file(path) as temporary:
        temporary.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return True


def embedded(
    model: MMEmbR1, queries: Any, rounds: int
) -> tuple[dict[str, npt.NDArray[np.float32]], list[dict[str, Any]]]:
    """Mode -> vectors `(Q, D)`, and what `explain` returned of always."""
    inputs = inputs_of(queries)
    explained = {mode: model.explain(inputs, reasoning=mode, max_reasoning_rounds=rounds, **PLAIN) for mode in MODES}
    return {mode: vectors_of(explained[mode]) for mode in MODES}, explained["always"]


@torch.inference_mode()
def depth(model: MMEmbR1, pairs: Dataset, candidates: Dataset, rounds: int) -> Columns:
    """The neighbour tasks' queries, and whether they find their target before any rationale and after each round."""
    pairs = of_tasks(pairs, NEIGHBOURS)
    sets = embed_candidates(model, candidates, set(pairs["candidate_set"]), BATCH_SIZE)
    queries, parts = inputs_of(pairs["query"]), []
    for start in range(0, len(queries), BATCH_SIZE):
        features = model_inputs(model.preprocess(queries[start : start + BATCH_SIZE]))
        output = model[0].model.embed(
            **features, reasoning="always", max_reasoning_rounds=rounds, output_all_embeddings=True
        )
        parts.append(output.all_embeddings.numpy())
    vectors = np.concatenate(parts)  # (Q, rounds + 1, D)
    return {**whose(pairs), **{f"z{k}": hits(pairs, vectors[:, k], sets) for k in range(rounds + 1)}}
