"""Asks a model the questions of a split without and with a thought, and what its gate says of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from joint.measure import BATCH_SIZE, hits, inputs_of, whose

from mmemb_r1 import MMEmbR1
from mmemb_r1._files import replaced_file
from mmemb_r1.evaluation.runner import embed_candidates
from mmemb_r1.quickstart.pipeline import aligned

MODES = ("never", "always")


def measure_gate(checkpoint: Path, pairs: Dataset, candidates: Dataset, path: Path) -> bool:
    """
    Evaluate one model, query by query. The model embeds both sides.

    Writes an object of columns with a row per query: `pair_id`, `task`, `entity`, `complexity`; whether the target
    came first, `never` and `always`; the target's probability, `aligned_never` and `aligned_always`; the gate's
    `gate_prob`; the `tokens` of a thought. What the gate at any threshold would have got follows from these: a
    query's vector is one of the two.

    Args:
        checkpoint: the model's folder.
        pairs: whose queries are asked.
        candidates: of the Atlas.
        path: the file to write.

    Returns:
        Whether it was evaluated; `False` if the file is there already.
    """
    if path.exists():
        return False
    model = MMEmbR1(str(checkpoint), device="cpu")
    sets = embed_candidates(model, candidates, set(pairs["candidate_set"]), BATCH_SIZE)
    said = {mode: model.explain(inputs_of(pairs["query"]), reasoning=mode, batch_size=BATCH_SIZE) for mode in MODES}
    vectors = {mode: np.stack([one["embedding"] for one in rows]) for mode, rows in said.items()}
    columns: dict[str, list[Any]] = {**whose(pairs), "complexity": list(pairs["complexity"])}
    columns |= {mode: hits(pairs, vectors[mode], sets) for mode in MODES}
    columns |= {f"aligned_{mode}": aligned(pairs, torch.from_numpy(vectors[mode]), sets).tolist() for mode in MODES}
    columns["gate_prob"] = [float(one["gate_prob"]) for one in said["never"]]
    columns["tokens"] = [int(one["num_reasoning_tokens"]) for one in said["always"]]
    with replaced_file(path) as temporary:
        temporary.write_text(json.dumps(columns) + "\n", encoding="utf-8")
    return True
