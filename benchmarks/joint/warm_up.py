"""What all arms of a seed start from."""

from __future__ import annotations

from pathlib import Path

from experiments.pipeline.recipe import Recipe
from experiments.pipeline.warm_up import WARM_UP_STEPS, warm_up
from mmemb_r1.atlas import build_atlas
from mmemb_r1.runs import made_whole

ATLAS_SEED, NUM_OBJECTS = 0, 240
TINY_ATLAS = {"num_objects": 12, "num_countries": 40, "generated_rows": 4}
TINY_WARM_UP_STEPS = 20


def make_start(output: Path, seed: int, tiny: bool = False) -> bool:
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
    checkpoints = output / f"checkpoints-warm-{seed}"
    return made_whole(output / f"warm-{seed}", lambda folder: warm_up(atlas, recipe, folder, checkpoints))
