"""The joint phase on Atlas: of a model from random weights, or of one that was warmed up."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import set_seed

from experiments.pipeline.recipe import Recipe
from experiments.pipeline.stage import ON_CPU
from mmemb_r1 import MMEmbR1, MMEmbR1Model
from mmemb_r1.atlas import Atlas, atlas_texts, augment
from mmemb_r1.model_card import write_model_card
from mmemb_r1.runs import write_json
from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training import JointConfig, JointTrainer
from mmemb_r1.training.base_trainer import last_checkpoint

LOG_FILE = "log.json"


def untrained_model(atlas: Atlas, recipe: Recipe) -> tuple[MMEmbR1Model, Any]:
    """The tiny backbone with a tokenizer of its own, as an embedding model, all weights random; and its processor."""
    vlm, processor = build_tiny_vlm(
        "qwen3_vl", texts=atlas_texts(atlas), vocab_size=recipe.vocab_size, seed=recipe.seed, **recipe.backbone
    )
    return MMEmbR1Model.from_vlm(vlm, processor, **recipe.model)


def joint_settings(recipe: Recipe, **fields: Any) -> dict[str, Any]:
    """Fields of [`JointConfig`]: those of a recipe, and `fields` instead of them or besides."""
    steps = int(fields.get("max_steps", recipe.steps))
    return {
        "max_steps": steps,
        "warmup_steps": max(1, steps // 15),
        "lr_scheduler_type": "cosine",
        "seed": recipe.seed,
        **ON_CPU,
        **recipe.training,
        **fields,
    }


def joint_trainer(
    model: MMEmbR1Model,
    processor: Any,
    pairs: Dataset,
    settings: Mapping[str, Any],
    checkpoints: Path,
    rationales: Dataset | None = None,
) -> JointTrainer:
    """
    The trainer of the joint phase, whose pictures are varied a little at each visit.

    Args:
        model: to be trained.
        processor: its own.
        pairs: to train on.
        settings: fields of [`JointConfig`].
        checkpoints: folder for those that a killed run goes on from.
        rationales: drawn from instead of those in the pairs table.
    """
    return JointTrainer(
        model=model.train(),
        args=JointConfig(output_dir=str(checkpoints), **settings),
        train_dataset=pairs,
        processing_class=processor,
        rationales=rationales,
        augment=augment,
    )


def finish(trainer: JointTrainer, folder: Path) -> None:
    """Train from the last checkpoint, if there is one, and save the model, what it was trained on, and the log."""
    last = last_checkpoint(Path(trainer.args.output_dir))
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=last)
    seconds = time.perf_counter() - start
    trained = MMEmbR1.from_model(trainer.model.eval(), trainer.processing_class)
    trained.save_pretrained(str(folder), create_model_card=False)
    facts = {
        **trainer.facts,
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 1),
        "parameters": trainer.model.num_parameters(),
        "threads": torch.get_num_threads(),
    }
    if last:
        facts |= {"resumed from": Path(last).name, "seconds": f"{seconds:.1f} since then"}
    write_model_card(folder, training=facts)
    write_json(folder / LOG_FILE, trainer.state.log_history)


def train_from_nothing(atlas: Atlas, recipe: Recipe, folder: Path, checkpoints: Path, **fields: Any) -> None:
    """Train a model from random weights on all that Atlas has, with the rationales of its pairs, and save it."""
    set_seed(recipe.seed)
    model, processor = untrained_model(atlas, recipe)
    settings = joint_settings(recipe, **fields)
    finish(joint_trainer(model, processor, atlas.pairs["train"], settings, checkpoints), folder)


def train_from(
    start: Path,
    pairs: Dataset,
    rationales: Dataset | None,
    settings: Mapping[str, Any],
    folder: Path,
    checkpoints: Path,
) -> None:
    """Train a checkpoint on, and save it. A killed run goes on from the last of `checkpoints`."""
    set_seed(settings["seed"])
    model = MMEmbR1(str(start), device="cpu")
    finish(joint_trainer(model[0].model, model[0].processor, pairs, settings, checkpoints, rationales), folder)
