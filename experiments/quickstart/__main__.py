"""`make quickstart`: from nothing to a trained checkpoint and what it does."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from mmemb_r1.cli import exit_status

HELP = """\
Build the Atlas benchmark and train a small model on it from scratch (CPU, float32) by the whole method: warm-up,
rationales of four workers, their selection, joint phase, gate, GRPO. Then evaluate it on the test split, write its
card, and show what it does. Everything goes into one directory; a run that was interrupted goes on where it was."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("runs/quickstart"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="optimiser steps of all phases; default: the recipe's")
    parser.add_argument("--seed", type=int, metavar="N", help="default: 0")


def run(args: argparse.Namespace) -> int:
    if args.steps is not None and args.steps < 1:
        raise ValueError(f"--steps {args.steps}: at least 1 is needed")
    from rich.console import Console

    from experiments.quickstart.pipeline import run_quickstart
    from experiments.quickstart.recipe import QuickstartRecipe
    from experiments.quickstart.showcase import draw_showcase, lines_to_paste, save_example
    from experiments.quickstart.stages import EVALUATION, MODEL, RESULTS_FILE
    from mmemb_r1 import MMEmbR1
    from mmemb_r1.atlas import load_atlas
    from mmemb_r1.evaluation.report import HTML_FILE
    from mmemb_r1.evaluation.report.terminal import print_table, results_table

    console = Console(width=max(100, shutil.get_terminal_size().columns))
    recipe = QuickstartRecipe()
    if args.seed is not None:
        recipe = recipe.with_seed(args.seed)
    if args.steps is not None:
        recipe = recipe.with_steps(args.steps)
    results = run_quickstart(args.output, recipe, console)
    print_table(results_table(results, title="hit@1 on Atlas, test split"))
    atlas, checkpoint = load_atlas(args.output / "atlas"), args.output / MODEL
    picture, example = args.output / "showcase.png", args.output / "flag.png"
    draw_showcase(MMEmbR1(str(checkpoint), device="cpu"), atlas, picture)
    save_example(atlas, example)
    console.rule("Done")
    shown = {
        "queries, answers and thoughts": picture,
        "report": args.output / EVALUATION / HTML_FILE,
        "results": args.output / RESULTS_FILE,
        "card": checkpoint / "README.md",
    }
    for what, path in shown.items():
        if path.exists():  # without what draws there is no report
            console.print(f"{what}: {path}", highlight=False, soft_wrap=True)
    console.print("\nTry it:\n")
    console.print(lines_to_paste(checkpoint, example), highlight=False, soft_wrap=True, markup=False)
    return 0


def arguments_parser() -> argparse.ArgumentParser:
    """The parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.quickstart", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    configure(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, as `mmemb-r1` does."""
    return exit_status(arguments_parser().parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
