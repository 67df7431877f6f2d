"""`max_image_tokens` of the trainings: pictures are smaller, and the limit stays with the model."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")]


@pytest.fixture
def large(make_pairs):
    """Pairs whose pictures have four tokens, or, being narrow, more than one even where the processor is limited."""
    sizes = [(128, 128), (1024, 32), (128, 96), (32, 900), (64, 64), (96, 128)] * 2
    pictures = [Image.effect_noise(size, 60).convert("RGB") for size in sizes]
    return make_pairs(
        [{"query": {"image": [one], "text": f"{n}?"}, "target": {"text": str(n)}} for n, one in enumerate(pictures)]
    )


def test_joint(make_trainer, vivid, large):
    trainer = make_trainer(vivid, large, max_image_tokens=2, max_steps=1, per_device_train_batch_size=12)
    batch = next(iter(trainer.get_train_dataloader()))
    grids = torch.cat([chunk["features"]["image_grid_thw"] for chunk in batch["query"]["chunks"]])
    assert len(grids) == 12
    assert (grids.prod(dim=1) // 4).max() <= 2
    trainer.train()
    assert trainer.model.config.max_image_tokens == 2


def test_adaptive(one_group_of, vivid, large):
    trainer, batch = one_group_of(vivid, large, max_image_tokens=2)
    tokens = batch["image_grid_thw"].prod(dim=1) // 4
    assert tokens.max() <= 2
    assert (batch["prompt_ids"] == vivid.config.vlm_config.image_token_id).sum() == tokens.sum()
    assert trainer._compute_loss(trainer.model, batch).isfinite()
    assert vivid.config.max_image_tokens == 2


@pytest.fixture
def one_group_of(processor, tmp_path, on_cpu):
    """A trainer after it has scored the rollouts of all rows of a table, and the batch."""
    from mmemb_r1.training import AdaptiveGRPOConfig, AdaptiveGRPOTrainer

    def build(model, table, **changes):
        config = AdaptiveGRPOConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=4 * len(table), num_generations=4, max_steps=1,
            max_reasoning_tokens=4, save_strategy="no", **on_cpu, **changes,
        )  # fmt: skip
        trainer = AdaptiveGRPOTrainer(model, config, table, processor)
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        rows = [trainer.train_dataset[row] for row in range(len(table)) for _ in range(4)]
        return trainer, trainer._generate_and_score_completions(rows)

    return build


def test_pixels_travel_in_the_dtype_of_the_arithmetic(make_trainer, vivid, large):
    for options, dtype in (({}, torch.float32), ({"bf16": True}, torch.bfloat16)):
        trainer = make_trainer(vivid, large, **options)
        batch = next(iter(trainer.get_train_dataloader()))
        assert batch["query"]["chunks"][0]["features"]["pixel_values"].dtype == dtype
