"""The numbers of the quickstart: what is built, how it is trained, and why these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Share of each task in training. Perception is the bottleneck: a flag that is not told from its neighbours can't be
# reasoned about, so half of all pairs are pictures and their names. Facts as text come next, because held-out
# countries get theirs from nowhere else.
TASK_WEIGHTS = {
    "picture-name-flag": 32.0,
    "picture-name-object": 20.0,
    "name-picture": 4.0,
    "picture-name-de": 1.0,
    "picture-name-es": 1.0,
    "picture-name-fr": 1.0,
    "fact-capital": 4.0,
    "fact-currency": 3.0,
    "fact-language": 3.0,
    "fact-tld": 3.0,
    "fact-region": 2.0,
    "fact-country": 1.0,
    "fact-area": 1.0,
    "fact-population": 1.0,
    "fact-largest-neighbour": 1.0,
    "fact-smallest-neighbour": 1.0,
    "flag-capital": 4.0,
    "flag-currency": 4.0,
    "flag-language": 4.0,
    "flag-tld": 4.0,
    "flag-region": 4.0,
    "fact-flag": 1.0,
    "neighbour-capital": 1.0,
    "neighbour-currency": 1.0,
    "compare-area": 1.0,
    "compare-population": 1.0,
    "digits-sum": 1.0,
    "digits-largest": 1.0,
    "digits-nth": 1.0,
}


@dataclass(frozen=True)
class Recipe:
    """
    Everything that determines a quickstart.

    Args:
        seed: of data, weights and order.
        atlas: arguments of `build_atlas` besides the seed.
        vocab_size: of the tokenizer, which is trained on Atlas's texts.
        backbone: sizes of the tiny Qwen3-VL, see `build_tiny_vlm`.
        model: fields of [`MMEmbR1Config`].
        steps: optimiser steps of the joint phase.
        training: further fields of [`JointConfig`].
        gate_cost: what a thought has to gain, as probability of the target, to be worth its time.
    """

    seed: int = 0
    atlas: dict[str, Any] = field(default_factory=dict)
    vocab_size: int = 4096
    backbone: dict[str, Any] = field(
        default_factory=lambda: {
            "hidden_size": 256,
            "num_layers": 4,
            "num_heads": 4,
            "vision_hidden_size": 192,
            "vision_layers": 3,
            "image_size": 64,
        }
    )
    model: dict[str, Any] = field(default_factory=lambda: {"max_reasoning_tokens": 64})
    steps: int = 1200
    training: dict[str, Any] = field(
        default_factory=lambda: {
            "per_device_train_batch_size": 64,
            "sub_batch_size": 16,
            "learning_rate": 1.2e-3,
            "weight_decay": 0.01,
            "direct_reasoned_weight": 0.25,
            "reasoned_reasoned_weight": 0.25,
            "task_weights": TASK_WEIGHTS,
            "save_steps": 200,
            "logging_steps": 50,
        }
    )
    gate_cost: float = 0.02
