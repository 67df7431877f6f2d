"""The adaptive phase of one seed, for every benchmark of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import set_seed

from mmemb_r1 import MMEmbR1
from mmemb_r1._files import claim, made_whole
from mmemb_r1.model_card import write_model_card
from mmemb_r1.training import AdaptiveGRPOConfig, AdaptiveGRPOTrainer
from mmemb_r1.training.checkpoints import last_checkpoint


def train_adaptive(
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
    claim(output / f"grpo-{seed}.json", {**fields, "steps": steps, **facts})

    def make(made: Path) -> None:
        set_seed(seed)
        model = MMEmbR1(str(start), device="cpu")
        if rounds is not None:
            model[0].model.config.max_reasoning_rounds = rounds
        config = AdaptiveGRPOConfig(
            output_dir=str(checkpoints),
            max_steps=steps,
            seed=seed,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            report_to=[],
            **fields,
        )
        trainer = AdaptiveGRPOTrainer(model[0].model.train(), config, pairs, model.processor, joint_pairs=joint_pairs)
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
        trained = MMEmbR1.from_model(trainer.model.eval(), trainer.processing_class)
        trained.save_pretrained(str(made), create_model_card=False)
        write_model_card(made, training=trainer.facts | {"steps": trainer.state.global_step})
        (made / "log.json").write_text(json.dumps(trainer.state.log_history) + "\n", encoding="utf-8")

    made_whole(folder, make)
    return folder
