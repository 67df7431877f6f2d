"""The adaptive phase of one seed, for every benchmark of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from experiments.pipeline.grpo import train_adaptive
from mmemb_r1.runs import made_whole, record_run


def train_seed(
    output: Path,
    seed: int,
    start: Path,
    pairs: Dataset,
    joint_pairs: Dataset,
    steps: int,
    fields: Mapping[str, Any],
    facts: Mapping[str, Any],
    rounds: int | None = None,
) -> Path:
    """
    Train, and save in `output / "grpo-{seed}"`. A killed run goes on.

    Args:
        output: the experiment's folder.
        seed: of the run.
        start: the checkpoint to start from.
        pairs: whose queries are asked.
        joint_pairs: their targets are negatives too.
        steps: optimiser steps.
        fields: of `AdaptiveGRPOConfig`.
        facts: what makes this run another one, besides `fields` and `steps`.
        rounds: rationales per query at most, also of the model that is saved. Default: as the checkpoint says.

    Returns:
        The folder.
    """
    folder, checkpoints = output / f"grpo-{seed}", output / "checkpoints" / f"grpo-{seed}"
    record_run(output / f"grpo-{seed}.json", {**fields, "steps": steps, **facts})
    settings = {**fields, "max_steps": steps, "seed": seed}
    made_whole(
        folder, lambda made: train_adaptive(start, pairs, joint_pairs, settings, made, checkpoints, rounds=rounds)
    )
    return folder
