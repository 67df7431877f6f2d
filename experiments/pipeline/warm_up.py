"""The warm-up: names of pictures, and facts as text. What a pretrained backbone would bring along."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from experiments.pipeline.joint import train_from_nothing
from experiments.pipeline.recipe import TASK_WEIGHTS, Recipe
from experiments.pipeline.tasks import LATER
from mmemb_r1.atlas import Atlas

WARM_UP_STEPS = 1600


def warm_up_recipe(recipe: Recipe) -> Recipe:
    """The same without questions of several steps."""
    simple = {task: weight for task, weight in TASK_WEIGHTS.items() if not task.startswith(LATER)}
    return dataclasses.replace(recipe, training={**recipe.training, "task_weights": simple})


def warm_up(atlas: Atlas, recipe: Recipe, folder: Path, checkpoints: Path, **fields: Any) -> None:
    """Train what later phases start from: it names pictures and knows facts as text, and has met no question of
    several steps. `fields` of `JointConfig` come before those of the recipe."""
    train_from_nothing(atlas, warm_up_recipe(recipe), folder, checkpoints, **fields)
