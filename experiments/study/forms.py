"""How much the study trains, and for how many seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments.pipeline.recipe import Recipe
from experiments.study.rows import BEFORE_GRPO, MORE_SEEDS, Row

ATLAS_SEED = 0  # the Atlas, the evaluator and the selection are the same for all seeds
WARM_UP, TRAINED = "warm-up", "trained"  # the evaluator: what seed 0 starts from, or a model that is trained for it


@dataclass(frozen=True)
class Form:
    """
    Args:
        name: of the form.
        joint_steps, grpo_steps: optimiser steps of each row.
        warm_up_steps: of what all rows of a seed start from.
        seeds: of the rows in `MORE_SEEDS`; other rows have the first.
        recipe: sizes of Atlas and the backbone, and what is the same in all phases.
        joint: further fields of `JointConfig`.
        grpo: further fields of `AdaptiveGRPOConfig`.
        evaluator_from: `WARM_UP`, which compares vectors and costs no training, or `TRAINED`.
        evaluator: further fields of `EvaluatorConfig`, of both parts.
        part_of_pairs: at most so many pairs of each task get rationales. Default: all.
        shortcut_queries: of each task at most, in the shortcut test. Default: all.
    """

    name: str
    joint_steps: int
    grpo_steps: int
    warm_up_steps: int = 1600
    seeds: tuple[int, ...] = (0,)
    recipe: Recipe = field(default_factory=Recipe)
    joint: Mapping[str, Any] = field(default_factory=dict)
    grpo: Mapping[str, Any] = field(default_factory=dict)
    evaluator_from: str = TRAINED
    evaluator: Mapping[str, Any] = field(default_factory=dict)
    part_of_pairs: int | None = None
    shortcut_queries: int | None = None

    def seeds_of(self, row: str) -> tuple[int, ...]:
        """
        >>> QUICK.seeds_of("full"), FULL_FORM.seeds_of("full"), FULL_FORM.seeds_of("one-worker")
        ((0,), (0, 1, 2), (0,))
        """
        return self.seeds if row in MORE_SEEDS else self.seeds[:1]

    def steps_of(self, row: Row) -> str:
        """
        Steps of the joint phase and of GRPO that a row's model has had since the warm-up.

        >>> from experiments.study.rows import BY_NAME
        >>> [QUICK.steps_of(BY_NAME[name]) for name in ("full", "no-grpo", "second-round")]
        ['250 + 50', '250 + 0', '500 + 100']
        """
        times = 1 if row.start is None else 2
        return f"{times * self.joint_steps} + {0 if row.name == BEFORE_GRPO else times * self.grpo_steps}"


# Seconds on one of two cores: 0.75 for a step of the warm-up or the joint phase, 2.6 for one of GRPO; for each row 10
# for the gate, 17 for the outcomes and 12 for the shortcut test; 400 for drawing and scoring rationales. Twelve rows
# that train, two at a time, and the warm-up before them take an hour. (On a faster machine, docs/study.md, ten of them
# took 42 minutes.) Training an evaluator would take as long again.
QUICK = Form(
    "quick",
    joint_steps=250,
    grpo_steps=50,
    joint={"save_steps": 50},
    grpo={"save_steps": 25},
    evaluator_from=WARM_UP,
    shortcut_queries=32,
)
FULL_FORM = Form("full", joint_steps=500, grpo_steps=150, seeds=(0, 1, 2), joint={"save_steps": 50})
# To try the command: everything runs, and nothing is learnt.
TINY = Form(
    "tiny",
    joint_steps=2,
    grpo_steps=1,
    warm_up_steps=2,
    recipe=Recipe(
        atlas={"num_countries": 24, "num_objects": 10, "generated_rows": 4, "num_drawings": 12, "second_font": None},
        vocab_size=400,
        backbone={"image_size": 64},
        model={"max_reasoning_tokens": 4},
    ),
    joint={"per_device_train_batch_size": 4, "sub_batch_size": 2, "save_steps": 1},
    grpo={"per_device_train_batch_size": 8, "save_steps": 1},
    evaluator={"max_steps": 1, "warmup_steps": 1, "per_device_train_batch_size": 4, "save_steps": 1},
    part_of_pairs=2,
)
LEARNING_RATE = 3e-4  # of the joint phase after a warm-up
