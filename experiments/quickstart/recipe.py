"""How much the quickstart trains: the whole method with a few steps of each phase."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.pipeline.grpo import GRPO_FIELDS
from experiments.pipeline.recipe import Recipe
from experiments.pipeline.tasks import JOINT_TASK_WEIGHTS

RECIPE_FILE = "recipe.json"
# All tasks of Atlas; those that the study leaves out, because they are too hard for so small a model, as seldom as
# they are learnt.
TASK_WEIGHTS = {
    **JOINT_TASK_WEIGHTS,
    **dict.fromkeys(("picture-name-de", "picture-name-es", "picture-name-fr"), 1.0),
    **dict.fromkeys(("fact-area", "fact-population"), 0.5),
    **dict.fromkeys(("compare-area", "compare-population"), 1.0),
    **dict.fromkeys(("digits-sum", "digits-largest", "digits-nth"), 1.0),
}


@dataclass(frozen=True)
class QuickstartRecipe:
    """
    Everything that determines a quickstart.

    Args:
        warm_up: seed, Atlas, backbone, and how the warm-up is trained.
        joint: fields of [`JointConfig`] for the joint phase instead of those of the warm-up.
        grpo: fields of [`AdaptiveGRPOConfig`].
        rows_per_task: of the `policy` split, for the gate and GRPO: digits and comparisons would be half of it.
    """

    warm_up: Recipe = field(default_factory=lambda: Recipe(steps=1300))
    joint: dict[str, Any] = field(
        default_factory=lambda: {
            "max_steps": 1200,
            "learning_rate": 5e-4,
            "task_weights": TASK_WEIGHTS,
            "save_steps": 100,
        }
    )
    grpo: dict[str, Any] = field(default_factory=lambda: {**GRPO_FIELDS, "max_steps": 50, "save_steps": 25})
    rows_per_task: int = 60

    @property
    def steps(self) -> int:
        """Optimiser steps of all phases together."""
        return int(self.warm_up.steps + self.joint["max_steps"] + self.grpo["max_steps"])

    def with_seed(self, seed: int) -> QuickstartRecipe:
        """The same with another seed of everything."""
        return dataclasses.replace(self, warm_up=dataclasses.replace(self.warm_up, seed=seed))

    def with_steps(self, steps: int) -> QuickstartRecipe:
        """
        The same with so many steps in all, in the same proportion, and at least one of each phase.

        >>> less = QuickstartRecipe().with_steps(255)
        >>> less.warm_up.steps, less.joint["max_steps"], less.grpo["max_steps"]
        (130, 120, 5)
        """
        warm_up, joint, grpo = (
            max(1, round(own * steps / self.steps))
            for own in (self.warm_up.steps, self.joint["max_steps"], self.grpo["max_steps"])
        )
        return dataclasses.replace(
            self,
            warm_up=dataclasses.replace(self.warm_up, steps=warm_up),
            joint={**self.joint, "max_steps": joint},
            grpo={**self.grpo, "max_steps": grpo},
        )


def read_recipe(folder: Path) -> QuickstartRecipe:
    """
    The recipe of a quickstart that was begun in a folder.

    Raises:
        ValueError: if its recipe has not the fields of this version.
    """
    path = folder / RECIPE_FILE
    fields = json.loads(path.read_text(encoding="utf-8"))
    known = {one.name for one in dataclasses.fields(QuickstartRecipe)}
    if set(fields) != known:
        raise ValueError(
            f"{path} has the fields {', '.join(sorted(fields))}; expected: {', '.join(sorted(known))}. It is of "
            "another version: run the quickstart again, in another folder."
        )
    return QuickstartRecipe(**{**fields, "warm_up": Recipe(**fields["warm_up"])})
