"""Trains one arm."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from datasets import Dataset

from experiments.pipeline.joint import joint_settings, train_from
from experiments.pipeline.posterior import training_table
from experiments.pipeline.recipe import Recipe
from experiments.pipeline.tasks import of_tasks
from joint.arms import ARMS, GOLD, LEARNING_RATE, STEPS, Arm
from joint.selection import table_path
from mmemb_r1.atlas import Atlas
from mmemb_r1.runs import made_whole, record_run


def train_arm(
    atlas: Atlas,
    output: Path,
    run: Path,
    name: str,
    seed: int,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
) -> bool:
    """
    Train one arm from the warm-up of its seed, and save it in `run / "arms"`. A killed run goes on.

    Args:
        atlas: its `train` split is trained on.
        output: the experiment's folder, with warm-ups and tables of rationales.
        run: the folder of these numbers.
        name: a key of `ARMS`.
        seed: of the warm-up and the order.
        steps: optimiser steps.
        learning_rate: the highest one.

    Returns:
        Whether it was trained; `False` if it was there already.

    Raises:
        ValueError: if the arm was begun with other numbers or rationales, or what it starts from is not there.
    """
    arm, start = ARMS[name], output / f"warm-{seed}"
    if not start.exists():
        raise ValueError(f"there is no {start}; run --stages warm-up first")
    pairs = of_tasks(atlas.pairs["train"], set(arm.task_weights))
    rationales = rationales_of(arm, pairs, output)
    settings = joint_settings(
        Recipe(seed=seed),
        **{
            "max_steps": steps,
            "learning_rate": learning_rate,
            "task_weights": dict(arm.task_weights),
            "use_rationales": arm.rationales is not None,
            "max_reasoning_rounds": arm.rounds,
            **arm.fields,
        },
    )
    facts = {**settings, "atlas": atlas.manifest["fingerprint"], "rationales": _digest(rationales)}
    record_run(
        run / "arms" / f"{name}-{seed}.json",
        facts,
        what=f"the arm {name}-{seed}",
        hint="Other numbers go into another --variant.",
    )
    checkpoints = run / "checkpoints" / f"{name}-{seed}"
    return made_whole(
        run / "arms" / f"{name}-{seed}",
        lambda folder: train_from(start, pairs, rationales, settings, folder, checkpoints),
    )


def rationales_of(arm: Arm, pairs: Dataset, output: Path) -> Dataset | None:
    """The table that an arm draws rationales from; `None` for those in the pairs table, or none at all."""
    if arm.rationales in (None, GOLD):
        return None
    path = table_path(output, str(arm.rationales))
    if not path.exists():
        raise ValueError(f"there is no {path}; run --stages selection first")
    return training_table(path, pairs)


def _digest(rationales: Dataset | None) -> str | None:
    if rationales is None:
        return None
    columns = rationales.select_columns(["pair_id", "side", "text", "posterior"]).with_format("arrow")[:]
    return blake2b(repr(columns.to_pydict()).encode(), digest_size=16).hexdigest()
