"""The arms: models that start from the same warm-up and differ in what they learn from, not in pairs or steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments.pipeline.tasks import FLAGS, JOINT_TASK_WEIGHTS, NEIGHBOURS

# Chains of three steps need the neighbours by heart. The warm-up has shown each about twice, other facts 15 times.
DEPTH_TASK_WEIGHTS = {
    **JOINT_TASK_WEIGHTS,
    **dict.fromkeys(FLAGS, 3.0),
    **dict.fromkeys(NEIGHBOURS, 12.0),
    "fact-flag": 0.5,
    "name-picture": 0.5,
    "picture-name-flag": 15.0,
    "picture-name-object": 5.0,
    "fact-capital": 5.0,
    "fact-currency": 5.0,
    "fact-tld": 2.0,
    "fact-language": 2.0,
    "fact-region": 1.0,
    "fact-largest-neighbour": 12.0,
    "fact-smallest-neighbour": 12.0,
}
STEPS, LEARNING_RATE = 500, 3e-4
GOLD = "gold"


@dataclass(frozen=True)
class Arm:
    """
    One way to train.

    Args:
        rationales: `"selected"` or `"unselected"`, a table of the pool; `"gold"`, Atlas's own, in segments; `None`
            trains the direct path alone.
        fields: further fields of `JointConfig`.
        rounds: thoughts of one chain.
        task_weights: how often each task is drawn.
    """

    rationales: str | None
    fields: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 1
    task_weights: Mapping[str, float] = field(default_factory=lambda: JOINT_TASK_WEIGHTS)


ARMS = {
    "selected": Arm("selected"),
    "unselected": Arm("unselected"),
    "direct": Arm(None),
    "selected-unmixed": Arm("selected", {"direct_reasoned_weight": 0.0, "reasoned_direct_weight": 0.0}),
    "depth": Arm(GOLD, rounds=3, task_weights=DEPTH_TASK_WEIGHTS),
}
