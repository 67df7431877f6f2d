"""Fit the gate of an Atlas model, as the study and the measurements do: to all pairs that are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from mmemb_r1 import MMEmbR1
from mmemb_r1.training import GateConfig, train_gate

# As in experiments/quickstart, where the reasons are; the test split is what is measured on.
CONFIG: dict[str, Any] = {
    "holdout": 0.0,
    "gate_inputs": "words",
    "cost": 0.0,
    "token_price": 0.01,
    "batch_size": 128,
}


def fit_gate_of(
    checkpoint: Path, pairs: Dataset, candidates: Dataset, folder: Path, rounds: int = 1
) -> dict[str, Any]:
    """
    Fit a checkpoint's gate on pairs that its embedder was not fitted to, and save the model with it.

    Args:
        checkpoint: the model's folder.
        pairs: an Atlas table, the `policy` split.
        candidates: of the Atlas.
        folder: for the model.
        rounds: rationales at most; the gate is fitted on the decision before each of them, and the model that is saved
            thinks so often.

    Returns:
        What [`train_gate`] returned.
    """
    model = MMEmbR1(str(checkpoint), device="cpu")
    config = GateConfig(max_reasoning_rounds=rounds, **CONFIG)
    facts = train_gate(model, pairs, config, candidates, progress=False)
    model.save_pretrained(str(folder))
    return facts
