"""`mmemb-r1 quickstart`: from nothing to a trained checkpoint and what it does."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

HELP = """\
Build the Atlas benchmark, train a small model on it from scratch (CPU, float32), fit its gate, evaluate it on the test
split, and show what it does. Everything goes into one directory; a run that was interrupted goes on where it was."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("runs/quickstart"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="optimiser steps; default: those of the recipe")
    parser.add_argument("--seed", type=int, metavar="N", help="default: 0")


def run(args: argparse.Namespace) -> int:
    if args.steps is not None and args.steps < 1:
        raise ValueError(f"--steps {args.steps}: at least 1 is needed")
    from rich.console import Console

    from mmemb_r1 import MMEmbR1
    from mmemb_r1.atlas import load_atlas
    from mmemb_r1.evaluation.report import print_table, results_table
    from mmemb_r1.pipeline.recipe import Recipe
    from mmemb_r1.quickstart.pipeline import run_quickstart
    from mmemb_r1.quickstart.showcase import draw_showcase, lines_to_paste, save_example

    console = Console(width=max(100, shutil.get_terminal_size().columns))
    wishes = {name: value for name in ("steps", "seed") if (value := getattr(args, name)) is not None}
    results = run_quickstart(args.output, replace(Recipe(), **wishes), console)
    print_table(results_table(results, title="hit@1 on Atlas, test split"))
    atlas = load_atlas(args.output / "atlas")
    picture, example = args.output / "showcase.png", args.output / "flag.png"
    draw_showcase(MMEmbR1(str(args.output / "model"), device="cpu"), atlas, picture)
    save_example(atlas, example)
    console.rule("Done")
    console.print(f"queries, answers and thoughts: {picture}\nresults: {args.output / 'results.json'}\n\nTry it:\n")
    console.print(lines_to_paste(args.output / "model", example), highlight=False, soft_wrap=True, markup=False)
    return 0
