from __future__ import annotations

import dataclasses
import json

import pytest

from experiments.pipeline.joint import joint_settings, joint_trainer, train_from_nothing, untrained_model
from experiments.pipeline.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
def test_an_interrupted_training_goes_on(small_atlas, tmp_path):
    few = {"per_device_train_batch_size": 4, "sub_batch_size": 2, "save_steps": 1, "disable_tqdm": True}
    recipe = Recipe(vocab_size=400, backbone={"image_size": 64}, model={"max_reasoning_tokens": 4}, steps=3)
    recipe = dataclasses.replace(recipe, training=few)
    half = dataclasses.replace(recipe, training={**few, "save_total_limit": None})
    settings = joint_settings(half, max_steps=2, warmup_steps=1)
    model, processor = untrained_model(small_atlas, half)
    joint_trainer(model, processor, small_atlas.pairs["train"], settings, tmp_path / "checkpoints").train()
    train_from_nothing(small_atlas, recipe, tmp_path / "trained", tmp_path / "checkpoints")
    facts = json.loads((tmp_path / "trained" / "training.json").read_text(encoding="utf-8"))
    assert facts["resumed from"] == "checkpoint-2" and facts["steps"] == 3
