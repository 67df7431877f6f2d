"""Asks a model the questions of a split without and with a thought, and what its gate says of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from joint.measure import BATCH_SIZE, candidates_of, hits, inputs_of, whose

from mmemb_r1 import MMEmbR1
from mmemb_r1._files import replaced_file
from mmemb_r1.evaluation.runner import CandidateSet
from mmemb_r1.training.gate_warm_start import alignment

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
    sets = candidates_of(model, candidates, set(pairs["candidate_set"]), "never")
    said = {mode: model.explain(inputs_of(pairs["query"]), reasoning=mode, batch_size=BATCH_SIZE) for mode in MODES}
    vectors = {mode: np.stack([one["embedding"] for one in rows]) for mode, rows in said.items()}
    columns: dict[str, list[Any]] = {**whose(pairs), "complexity": list(pairs["complexity"])}
    columns |= {mode: hits(pairs, vectors[mode], sets) for mode in MODES}
    columns |= {f"aligned_{mode}": aligned(pairs, vectors[mode], sets) for mode in MODES}
    columns["gate_prob"] = [float(one["gate_prob"]) for one in said["never"]]
    columns["tokens"] = [int(one["num_reasoning_tokens"]) for one in said["always"]]
    with replaced_file(path) as temporary:
        temporary.write_text(json.dumps(columns) + "\n", encoding="utf-8")
    return True


def aligned(pairs: Dataset, vectors: npt.NDArray[np.float32], sets: dict[str, CandidateSet]) -> list[float]:
    """The probability of each query's target among all candidates of its set."""
    names, targets = np.array(pairs["candidate_set"]), np.array(pairs["target_id"])
    found = np.zeros(len(pairs))
    for name in set(names.tolist()):
        rows = np.flatnonzero(names == name)
        places = torch.from_numpy(sets[name].places(targets[rows].tolist()))
        found[rows] = alignment(torch.from_numpy(vectors[rows]), torch.from_numpy(sets[name].embeddings), places)
    return found.tolist()
