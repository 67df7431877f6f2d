"""Make pairs of random words and pictures, and a model to train on them, for benchmarks of training."""

from __future__ import annotations

import tempfile
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from PIL import Image

from experiments.pipeline.recipe import Recipe
from mmemb_r1 import MMEmbR1, MMEmbR1Model
from mmemb_r1.atlas.tables import input_feature, pair_features
from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training import JointConfig, JointTrainer
from mmemb_r1.training.joint.data import Example

LEXICON = 3000


class Kind(NamedTuple):
    """Pixels of a picture (0: none), words of a prompt, words of a rationale."""

    pixels: int
    prompt: int
    rationale: int


def words(seed: int) -> list[str]:
    """Words as a tokenizer could learn them."""
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=rng.integers(3, 8))) for _ in range(LEXICON)]


def loaded(folder: str | None, seed: int, **backbone: Any) -> tuple[MMEmbR1Model, Any]:
    """A checkpoint, or an untrained model of the quickstart's size but for `backbone`."""
    if folder is not None:
        model = MMEmbR1(folder, device="cpu", model_kwargs={"dtype": "float32"})
        return model[0].model, model.processor
    sizes = {**Recipe().backbone, **backbone}
    texts = [" ".join(words(seed))]
    return MMEmbR1Model.from_vlm(
        *build_tiny_vlm("qwen3_vl", texts=texts, vocab_size=Recipe().vocab_size, seed=seed, **sizes)
    )


def random_pairs(kind: Kind, count: int, seed: int, task: str = "random") -> Dataset:
    """Make pairs of different random inputs and rationales."""
    rng, known = np.random.default_rng(seed), words(seed)

    def text(number: int) -> str:
        return " ".join(rng.choice(known, size=rng.integers(number * 3 // 4, number * 5 // 4 + 1)))

    def one() -> dict[str, Any]:
        pixels = rng.integers(0, 256, (kind.pixels, kind.pixels, 3), dtype=np.uint8)
        pictures = [Image.fromarray(pixels)] if kind.pixels else []
        return {**dict.fromkeys(input_feature()), "text": text(kind.prompt), "image": pictures}

    columns = ("pair_id", "task", "query", "target", "query_rationale", "target_rationale")
    rows = [(str(row), task, one(), one(), [text(kind.rationale)], [text(kind.rationale)]) for row in range(count)]
    features = pair_features()
    schema = type(features)({name: features[name] for name in columns})
    return Dataset.from_list([dict(zip(columns, row, strict=True)) for row in rows], features=schema)


def joint_trainer(
    model: MMEmbR1Model, processor: Any, pairs: Dataset, batch: int, seed: int, **fields: Any
) -> JointTrainer:
    """A trainer whose batches hold `batch` pairs; `fields` are further ones of `JointConfig`."""
    with tempfile.TemporaryDirectory() as folder:
        config = JointConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            sub_batch_size=batch,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            report_to=[],
            seed=seed,
            **fields,
        )
        trainer = JointTrainer(model.train(), config, pairs, processor)
    model.gate.requires_grad_(False)  # as in training, without a weight for it
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def one_batch(trainer: JointTrainer) -> list[Example]:
    """The examples of a training table that is one batch long."""
    loader = trainer.get_train_dataloader()
    return [loader.dataset[visit] for batch in loader.batch_sampler for visit in batch]
