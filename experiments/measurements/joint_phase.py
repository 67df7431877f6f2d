"""
Does training on selected rationales pay? Arms that start from one warm-up per seed and see the same pairs and steps,
compared on countries that none of them was asked about.

    python -m experiments.measurements.joint_phase [--output runs/joint] [--seeds 0 1 2]
        [--arms selected unselected direct] [--stages warm-up evaluator selection joint evaluation report]
        [--steps 500]

1. *warm-up*: pictures and their names, facts as text; no question of several steps.
2. *evaluator*, trained from the first warm-up. 3. *selection*: the four workers' rationales for the questions of
   several steps, scored once, then selected counterfactually and not at all.
4. *joint*: each arm of each seed. 5. *evaluation* of each, on `--split`. 6. *report* on whatever was evaluated.

What is done already is not done again, and a killed run goes on. Arms and seeds do not touch each other's files: run
`--stages joint evaluation --seeds 1 --arms selected` and others at the same time, each with `OMP_NUM_THREADS=1`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import datasets
from rich.console import Console

from experiments.measurements.arm_outcomes import measure_arm
from experiments.measurements.arm_report import tables
from experiments.measurements.arm_summary import summarise
from experiments.measurements.arms import ARMS, LEARNING_RATE, STEPS, make_start, select_both, train_arm
from experiments.pipeline.evaluator import train_evaluator
from mmemb_r1.atlas import load_atlas
from mmemb_r1.runs import write_json

STAGES = ("warm-up", "evaluator", "selection", "joint", "evaluation", "report")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/joint"))
    parser.add_argument("--variant", help="a folder in --output for arms and results with other numbers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["selected", "unselected", "direct"])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each arm")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help="of each arm")
    parser.add_argument("--part", type=int, nargs=2, default=(1, 1), metavar=("I", "N"), help="of the scoring")
    parser.add_argument("--split", default="test", help="that the arms are evaluated on")
    parser.add_argument("--tiny", action="store_true", help="a small Atlas and a short warm-up, to try the script")
    args = parser.parse_args()
    console = Console(width=132)
    datasets.disable_progress_bars()
    output, run = args.output, args.output / (args.variant or "")
    if "warm-up" in args.stages:
        for seed in args.seeds:
            make_start(output, seed, tiny=args.tiny)
    atlas = load_atlas(output / "atlas")
    if "evaluator" in args.stages:
        train_evaluator(atlas, output / "warm-0", output / "selection", seed=0)
    if "selection" in args.stages:
        evaluator = output / "selection" / "atlas-evaluator"
        qualities = select_both(atlas, output, evaluator, (args.part[0], args.part[1]))
        for way, quality in (qualities or {}).items():
            console.print(way, quality["all"])
    if "joint" in args.stages:
        for seed in args.seeds:
            for arm in args.arms:
                train_arm(atlas, output, run, arm, seed, args.steps, args.learning_rate)
    if "evaluation" in args.stages:
        for seed in args.seeds:
            for arm in args.arms:
                measure_arm(atlas, run, arm, seed, args.split)
    if "report" in args.stages:
        summary = summarise(run, args.split)
        for table in tables(summary):
            console.print(table)
        write_json(run / f"results-{args.split}.json", summary)


if __name__ == "__main__":
    main()
