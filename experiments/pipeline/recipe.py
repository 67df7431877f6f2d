"""The numbers of what is trained from nothing on Atlas: what is built, how it is trained, and why these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmemb_r1.atlas.drawings import PERCEPTUAL_TASKS

# How often each task is drawn in training, relative to the others. Perception takes longest to get going: a flag that
# is not told from the others can't be reasoned about, so most pairs are pictures and their names, or two renderings of
# a drawing. A quarter are facts as text, the only place where held-out countries get theirs from.
TASK_WEIGHTS = {
    "picture-name-flag": 30.0,
    "picture-name-object": 18.5,
    "name-picture": 3.0,
    "picture-name-de": 1.0,
    "picture-name-es": 1.0,
    "picture-name-fr": 1.0,
    "fact-capital": 5.0,
    "fact-currency": 6.0,
    "fact-tld": 6.0,
    "fact-language": 5.0,
    "fact-region": 6.0,
    "fact-country": 1.0,
    "fact-largest-neighbour": 0.5,
    "fact-smallest-neighbour": 0.5,
    "fact-area": 0.25,
    "fact-population": 0.25,
    **dict.fromkeys(PERCEPTUAL_TASKS, 3.3),
    "flag-capital": 2.4,
    "flag-currency": 2.4,
    "flag-tld": 2.4,
    "flag-language": 2.4,
    "flag-region": 2.4,
    "fact-flag": 0.5,
    "neighbour-capital": 0.3,
    "neighbour-currency": 0.3,
    "compare-area": 0.3,
    "compare-population": 0.3,
    "mixed-sum": 0.4,
    "mixed-time": 0.4,
    "digits-sum": 0.4,
    "digits-largest": 0.4,
    "digits-nth": 0.4,
}


@dataclass(frozen=True)
class Recipe:
    """
    Everything that determines a model that is trained from random weights on Atlas.

    Args:
        seed: of data, weights and order.
        atlas: arguments of `build_atlas` besides the seed.
        vocab_size: of the tokenizer, which is trained on Atlas's texts.
        backbone: sizes of the tiny Qwen3-VL, see `build_tiny_vlm`.
        model: fields of [`MMEmbR1Config`].
        steps: optimiser steps of the joint phase.
        training: further fields of [`JointConfig`].
    """

    seed: int = 0
    atlas: dict[str, Any] = field(default_factory=lambda: {"num_objects": 240})
    vocab_size: int = 6144  # every name is a token or two: a fact is then one prediction, not a word spelled out
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
    steps: int = 1900
    training: dict[str, Any] = field(
        default_factory=lambda: {
            "per_device_train_batch_size": 32,  # 64 learns less from the same number of pairs
            "sub_batch_size": 16,
            "learning_rate": 6e-4,  # perception is learned more slowly at 1e-3 and above
            "weight_decay": 0.01,
            "rationale_weight": 6.0,  # what takes longest to learn is to recall facts word by word
            "direct_reasoned_weight": 0.25,
            "reasoned_reasoned_weight": 0.25,
            "task_weights": TASK_WEIGHTS,
            "save_steps": 200,
            "logging_steps": 50,
        }
    )
