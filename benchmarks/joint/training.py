"""Trains one arm."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from joint.arms import ARMS, GOLD, LEARNING_RATE, STEPS, Arm
from joint.data import POOLED, of_tasks
from joint.selection import SIDES, table_path
from mmemb_r1 import MMEmbR1
from mmemb_r1._files import claim, made_whole
from mmemb_r1.atlas import Atlas, augment
from mmemb_r1.quickstart.recipe import Recipe
from mmemb_r1.training import JointConfig, JointTrainer
from mmemb_r1.training.training_facts import TRAINING_FILE


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
    settings = _settings(arm, steps, learning_rate, seed)
    facts = {**settings, "atlas": atlas.manifest["fingerprint"], "rationales": _digest(rationales)}
    claim(
        run / "arms" / f"{name}-{seed}.json",
        facts,
        what=f"the arm {name}-{seed}",
        mend="Other numbers go into another --variant.",
    )
    checkpoints = run / "checkpoints" / f"{name}-{seed}"

    def train(folder: Path) -> None:
        set_seed(seed)
        model = MMEmbR1(str(start), device="cpu")
        trainer = JointTrainer(
            model=model[0].model.train(),
            args=JointConfig(output_dir=str(checkpoints), **settings),
            train_dataset=pairs,
            processing_class=model[0].processor,
            rationales=rationales,
            augment=augment,
        )
        last = get_last_checkpoint(str(checkpoints)) if checkpoints.exists() else None
        result = trainer.train(resume_from_checkpoint=last)
        MMEmbR1.from_model(trainer.model.eval(), trainer.processing_class).save_pretrained(str(folder))
        measured = {"resumed": last is not None, "threads": torch.get_num_threads(), **result.metrics}
        facts = {**trainer.facts, "measured": measured, "log": trainer.state.log_history}
        (folder / TRAINING_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    return made_whole(run / "arms" / f"{name}-{seed}", train)


def rationales_of(arm: Arm, pairs: Dataset, output: Path) -> Dataset | None:
    """
    The table that an arm draws rationales from; `None` for those in the pairs table, or none at all.

    To the ones kept from the pool it adds those of the rehearsed pairs, in all arms the same: they stand for what a
    pretrained backbone would know.
    """
    if arm.rationales in (None, GOLD):
        return None
    path = table_path(output, str(arm.rationales))
    if not path.exists():
        raise ValueError(f"there is no {path}; run --stages selection first")
    columns = ["pair_id", "side", "worker", "text", "posterior"]
    pooled = pq.read_table(path, columns=columns).to_pylist()
    rehearsed = pairs.select_columns(["pair_id", "task", *(f"{side}_rationale" for side in SIDES)])
    own = [
        {"pair_id": row["pair_id"], "side": side, "worker": "own", "text": " ".join(segments), "posterior": 1.0}
        for row in rehearsed
        for side in SIDES
        if row["task"] not in POOLED and (segments := row[f"{side}_rationale"])
    ]
    known = set(pairs["pair_id"])
    schema = pa.schema([(name, pa.float32() if name == "posterior" else pa.string()) for name in columns])
    return Dataset(pa.Table.from_pylist([row for row in pooled if row["pair_id"] in known] + own, schema=schema))


def _settings(arm: Arm, steps: int, learning_rate: float, seed: int) -> dict[str, Any]:
    """Fields of `JointConfig`: the quickstart's, but for what is named here."""
    return {
        **Recipe().training,
        "max_steps": steps,
        "warmup_steps": max(1, steps // 15),
        "lr_scheduler_type": "cosine",
        "learning_rate": learning_rate,
        "task_weights": dict(arm.task_weights),
        "use_rationales": arm.rationales is not None,
        "max_reasoning_rounds": arm.rounds,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "report_to": [],
        "save_total_limit": 1,
        "seed": seed,
        **arm.fields,
    }


def _digest(rationales: Dataset | None) -> str | None:
    if rationales is None:
        return None
    columns = rationales.select_columns(["pair_id", "side", "text", "posterior"]).with_format("arrow")[:]
    return blake2b(repr(columns.to_pydict()).encode(), digest_size=16).hexdigest()
