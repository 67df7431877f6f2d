"""What all arms of a seed start from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mmemb_r1._files import made_whole
from mmemb_r1.atlas import build_atlas
from mmemb_r1.quickstart.pipeline import train
from mmemb_r1.quickstart.recipe import TASK_WEIGHTS, Recipe

# Left out of the warm-up, so that no arm has seen a question of more than one step before.
LATER = ("flag-", "neighbour-", "compare-", "digits-", "fact-flag")

ATLAS_SEED, NUM_OBJECTS, WARM_UP_STEPS = 0, 240, 1600
TINY_ATLAS = {"num_objects": 12, "num_countries": 40, "generated_rows": 4}
TINY_WARM_UP_STEPS = 20


def warm_up(output: Path, seed: int, tiny: bool = False) -> bool:
    """
    Train what all arms of a seed start from: it names pictures and knows facts as text.

    Args:
        output: the experiment's folder. Gets `atlas` and `warm-{seed}`.
        seed: of the weights and the order; the Atlas is the same for all seeds.
        tiny: a small Atlas and a few steps, to try the script.

    Returns:
        Whether it was made; `False` if it was there already.
    """
    arguments = TINY_ATLAS if tiny else {"num_objects": NUM_OBJECTS}
    atlas = build_atlas(output / "atlas", seed=ATLAS_SEED, **arguments)
    recipe = Recipe(seed=seed, steps=TINY_WARM_UP_STEPS if tiny else WARM_UP_STEPS)
    simple = {task: weight for task, weight in TASK_WEIGHTS.items() if not task.startswith(LATER)}
    recipe = dataclasses.replace(recipe, training={**recipe.training, "task_weights": simple})
    checkpoints = output / f"checkpoints-warm-{seed}"
    return made_whole(output / f"warm-{seed}", lambda folder: train(atlas, recipe, folder, checkpoints))
