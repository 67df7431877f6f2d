"""Save the quickstart's tiny Qwen3-VL with random weights, as a checkpoint to start `mmemb-r1 train joint` from.

python -m experiments.untrained_atlas_model --atlas runs/atlas --output runs/untrained
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.pipeline.joint import untrained_model
from experiments.pipeline.recipe import Recipe
from mmemb_r1 import MMEmbR1
from mmemb_r1.atlas import load_atlas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--atlas", required=True, type=Path, help="what `mmemb-r1 atlas build` wrote")
    parser.add_argument("--output", required=True, type=Path, help="new folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of the weights; default: 0")
    args = parser.parse_args()
    model, processor = untrained_model(load_atlas(args.atlas), Recipe(seed=args.seed))
    MMEmbR1.from_model(model, processor).save_pretrained(str(args.output))


if __name__ == "__main__":
    main()
