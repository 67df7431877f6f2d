"""Tiny adaptive models of all families, built once, and batches for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from mmemb_r1 import MMEmbR1Model
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.tiny import FAMILIES, build_tiny_vlm

TOLERANCE = 1e-4
WEIGHT_SCALE = 8.0


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mixed_inputs() -> list[Any]:
    """Text, one picture, two pictures and text, an instruction, chat messages: rows of different length."""
    return [
        "What is the capital of Peru?",
        picture(0),
        {"text": "Which of the two is larger?", "image": [picture(1, 100, 100), picture(2, 37, 50)]},
        {"text": "This is a dog face.", "instruction": "Describe the picture in one word."},
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image", "image": picture(3)}]},
            {"role": "assistant", "content": "A flag."},
            {"role": "user", "content": "Of which country?"},
        ],
    ]


def video_inputs() -> list[Any]:
    clips = [np.stack([np.asarray(picture(seed + frame)) for frame in range(4)]) for seed in (0, 10)]
    return [{"video": clips[0], "text": "What is this?"}, "The largest is 7.", {"video": clips[1]}]


@dataclass
class Tiny:
    """A tiny model, its processor, and shorthands for both."""

    family: str
    model: MMEmbR1Model
    processor: ProcessorMixin

    @property
    def takes_videos(self) -> bool:
        return getattr(self.processor, "video_processor", None) is not None

    def batch(self, inputs: Sequence[Any]) -> dict[str, Tensor]:
        return dict(render(self.processor, to_conversations(inputs)))

    @torch.no_grad()
    def embed(self, inputs: Sequence[Any], **options: Any) -> Any:
        return self.model.embed(**self.batch(inputs), **options)

    def threshold(self, inputs: Sequence[Any]) -> float:
        """A gate threshold that some of the inputs reach and others don't."""
        low, high = self.embed(inputs, reasoning="never").gate_prob.sort().values[1:3].tolist()
        return (low + high) / 2

    def suffixes(self, output: Any) -> list[list[int]]:
        """`<think> r </think> <|embed|>` (of all rounds) per row of what `embed` returned."""
        config = self.model.config
        return [
            [config.think_token_id, *(token for token in ids if token >= 0), config.end_think_token_id,
             config.embed_token_id] if reasoned else []
            for ids, reasoned in zip(output.rationale_ids.tolist(), output.reasoned.tolist(), strict=True)
        ]  # fmt: skip

    def complete(self, batch: dict[str, Tensor], suffixes: list[list[int]]) -> dict[str, Tensor]:
        """The batch with suffixes appended; shorter rows are then padded on the right, too."""
        width = max(map(len, suffixes))
        pad = self.processor.tokenizer.pad_token_id
        tails = {
            "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in suffixes]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in suffixes]),
        }
        shape = batch["input_ids"].shape
        zeros = torch.zeros(shape[0], width, dtype=torch.long)
        return {
            key: torch.cat([value, tails.get(key, zeros).to(value.dtype)], dim=1) if value.shape == shape else value
            for key, value in batch.items()
        }

    def biased(self, token_id: int, value: float = 1e4) -> Any:
        """Context manager that adds to a token's logit."""

        def hook(module: Any, args: Any, logits: Tensor) -> Tensor:
            return logits + value * (torch.arange(logits.shape[-1]) == token_id)

        return self.model.get_output_embeddings().register_forward_hook(hook)


@torch.no_grad()
def build_tiny(family: str, **config: Any) -> Tiny:
    """A model whose weights are as large as those of a trained one.

    The random backbones of the factory are nearly linear: a vector that was computed from wrong positions would hardly
    differ from the right one. The gate is made to depend on its input.
    """
    vlm, processor = build_tiny_vlm(family)
    for parameter in vlm.parameters():
        if parameter.ndim > 1:
            parameter.mul_(WEIGHT_SCALE)
    model, processor = MMEmbR1Model.from_vlm(vlm, processor, **{"max_reasoning_tokens": 4, **config})
    generator = torch.Generator().manual_seed(0)
    model.gate.output.weight.normal_(generator=generator)
    return Tiny(family, model, processor)


@pytest.fixture(scope="module", autouse=True)
def small_matrices(one_thread: None) -> None:
    """All models here are tiny."""


@cache
def shared_tiny(family: str) -> Tiny:
    return build_tiny(family)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tiny(family: str) -> Tiny:
    """The model of a family, shared by all tests: not to be changed."""
    return shared_tiny(family)


@pytest.fixture
def qwen() -> Tiny:
    """One model where the family doesn't matter: not to be changed."""
    return shared_tiny("qwen3_vl")


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., Tiny]:
    """`make_tiny(family, **config)`: a model that may be changed."""
    return build_tiny


@pytest.fixture
def mixed() -> list[Any]:
    return mixed_inputs()


@pytest.fixture
def clips() -> list[Any]:
    return video_inputs()


@pytest.fixture
def draw() -> Callable[..., Image.Image]:
    """`draw(seed, width, height)`: a picture of noise."""
    return picture


@pytest.fixture
def close() -> Callable[[Tensor, Tensor], None]:
    """Assert that two tensors agree to the tolerance of this folder's equivalences."""

    def check(actual: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)

    return check
