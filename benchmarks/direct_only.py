"""
Does training to think cost the direct path? A model of the same data, steps and seed that was warmed up and trained on
the direct path alone, beside a finished quickstart.

    python benchmarks/direct_only.py --quickstart runs/quickstart [--output runs/direct_only]

Prints hit@1 of both without thinking, per task, and the means over the flag tasks and over picture -> name.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from experiments.pipeline.joint import train_from
from experiments.pipeline.tasks import FLAGS
from experiments.pipeline.warm_up import warm_up
from experiments.quickstart.recipe import RECIPE_FILE, read_recipe
from experiments.quickstart.stages import settings_of_joint
from mmemb_r1 import MMEmbR1
from mmemb_r1.atlas import load_atlas
from mmemb_r1.evaluation import Settings, load_results, run_evaluation, save_results
from mmemb_r1.evaluation.atlas_tasks import atlas_tasks
from mmemb_r1.runs import claim, made_whole

NAMES = ["picture-name-flag", "picture-name-object"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--output", type=Path, default=Path("runs/direct_only"))
    args = parser.parse_args()
    recipe = read_recipe(args.quickstart)
    joint = load_results(args.quickstart / "results.json")
    atlas = load_atlas(args.quickstart / "atlas")
    claim(args.output / RECIPE_FILE, asdict(recipe) | {"atlas": atlas.manifest["fingerprint"]})
    start, model, checkpoints = (args.output / name for name in ("warm-up", "model", "checkpoints"))
    without = {"use_rationales": False}
    made_whole(start, lambda folder: warm_up(atlas, recipe.warm_up, folder, checkpoints / "warm-up", **without))
    settings = settings_of_joint(recipe) | without
    made_whole(
        model, lambda made: train_from(start, atlas.pairs["train"], None, settings, made, checkpoints / "joint")
    )
    tasks, settings = atlas_tasks(atlas.pairs["test"], atlas.candidates), Settings(modes=("never",), no_image=True)
    direct = run_evaluation(MMEmbR1(str(model), device="cpu"), tasks, settings)
    save_results(direct, args.output / "results.json")

    def score(results: dict, task: str, mode: str = "never") -> float:
        return results["tasks"][task]["modes"][mode]["hit@1"]

    print(f"{'task':26s} {'direct-only':>11s} {'joint, never':>12s} {'joint, always':>13s}")
    for task in sorted(joint["tasks"]):
        print(
            f"{task:26s} {score(direct, task):11.3f} {score(joint, task):12.3f} {score(joint, task, 'always'):13.3f}"
        )
    for name, tasks in (("mean of flag + relation", FLAGS), ("mean of picture -> name", NAMES)):
        ours = mean(score(direct, task) for task in tasks)
        never, always = (mean(score(joint, task, mode) for task in tasks) for mode in ("never", "always"))
        print(f"{name:26s} {ours:11.3f} {never:12.3f} {always:13.3f}")


if __name__ == "__main__":
    main()
