"""The adaptive phase on Atlas."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import set_seed

from experiments.pipeline.joint import LOG_FILE
from experiments.pipeline.stage import ON_CPU
from mmemb_r1 import MMEmbR1
from mmemb_r1.model_card import write_model_card
from mmemb_r1.runs import write_json
from mmemb_r1.training import AdaptiveGRPOConfig, AdaptiveGRPOTrainer
from mmemb_r1.training.base_trainer import last_checkpoint

GRPO_STEPS = 150
# The same numbers, with their reasons, are in examples/adaptive-atlas.yaml; a test compares them.
GRPO_FIELDS: dict[str, Any] = {
    "per_device_train_batch_size": 64,
    "num_generations": 4,
    "learning_rate": 5e-6,
    "gate_learning_rate": 2e-3,
    "min_decision_prob": 0.02,
    "cost_weight": 0.64,
    "temperature": 0.5,
    "logging_steps": 10,
    "save_steps": 50,
}


def train_adaptive(
    start: Path,
    pairs: Dataset,
    joint_pairs: Dataset,
    settings: Mapping[str, Any],
    folder: Path,
    checkpoints: Path,
    rounds: int | None = None,
) -> None:
    """
    Train a checkpoint's gate and rationales by GRPO, and save it with its card. A killed run goes on.

    Args:
        start: the checkpoint to start from.
        pairs: whose queries are asked; the joint phase has not seen them.
        joint_pairs: their targets are negatives too.
        settings: of `AdaptiveGRPOConfig`; `max_steps` and `seed` among them.
        folder: for the model and the log.
        checkpoints: folder for those that a killed run goes on from.
        rounds: rationales per query at most, also of the model that is saved. Default: as the checkpoint says.
    """
    set_seed(settings["seed"])
    model = MMEmbR1(str(start), device="cpu")
    if rounds is not None:
        model[0].model.config.max_reasoning_rounds = rounds
    config = AdaptiveGRPOConfig(output_dir=str(checkpoints), **{**ON_CPU, **settings})
    trainer = AdaptiveGRPOTrainer(model[0].model.train(), config, pairs, model.processor, joint_pairs=joint_pairs)
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    trained = MMEmbR1.from_model(trainer.model.eval(), trainer.processing_class)
    trained.save_pretrained(str(folder), create_model_card=False)
    write_model_card(folder, training=trainer.facts | {"steps": trainer.state.global_step})
    write_json(folder / LOG_FILE, trainer.state.log_history)
