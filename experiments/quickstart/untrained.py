"""Make the quickstart's tiny Qwen3-VL with random weights, as a checkpoint to start `mmemb-r1 train joint` from.

python -m experiments.quickstart.untrained --atlas runs/atlas --output runs/untrained
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from transformers import set_seed

from experiments.pipeline.joint import untrained_model
from experiments.pipeline.recipe import Recipe
from mmemb_r1 import MMEmbR1
from mmemb_r1.atlas import load_atlas
from mmemb_r1.model_card import write_model_card
from mmemb_r1.model_card.record import INIT
from mmemb_r1.runs import made_whole


def main() -> None:
    """Make the checkpoint, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--atlas", required=True, type=Path, help="what `mmemb-r1 atlas build` wrote")
    parser.add_argument("--output", required=True, type=Path, help="new folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of the weights; default: 0")
    parser.add_argument("--smallest", action="store_true", help="two layers, 32 wide, and rationales of four tokens")
    args = parser.parse_args()
    recipe = Recipe(seed=args.seed)
    if args.smallest:
        small = {"vocab_size": 400, "backbone": {"image_size": 64}, "model": {"max_reasoning_tokens": 4}}
        recipe = dataclasses.replace(recipe, **small)

    def make(folder: Path) -> None:
        set_seed(recipe.seed)
        model, processor = untrained_model(load_atlas(args.atlas), recipe)
        MMEmbR1.from_model(model, processor).save_pretrained(str(folder), create_model_card=False)
        write_model_card(folder, training={"phase": INIT, "weights": f"random, seed {recipe.seed}"})

    made = made_whole(args.output, make)
    print(f"the untrained model is in {args.output}" + ("" if made else " already"))


if __name__ == "__main__":
    main()
