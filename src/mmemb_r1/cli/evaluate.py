"""`mmemb-r1 evaluate`: measure a checkpoint on the Atlas benchmark."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

HELP = """\
Measure a checkpoint on the Atlas benchmark: per task and reasoning mode hit@1, MRR, invocation ratio, rationale tokens
and seconds per query, beside the majority-answer and the no-image baselines."""

MODES = ("never", "always", "auto")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="the checkpoint: a folder or a Hub id")
    parser.add_argument("--atlas", required=True, metavar="DIR", help="what `mmemb-r1 atlas build` wrote")
    parser.add_argument("--split", choices=("policy", "validation", "test"), default="test", help="default: test")
    parser.add_argument("--modes", default=",".join(MODES), help=f"comma-separated; default: {','.join(MODES)}")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the results go as JSON")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument("--device", help="say cpu or cuda:1; default: the best one there is")


def run(args: argparse.Namespace) -> int:
    modes = tuple(args.modes.split(","))
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise ValueError(f"--modes {args.modes}: {unknown[0]!r} is not known; allowed: {', '.join(MODES)}")

    from rich.console import Console

    from mmemb_r1 import MMEmbR1
    from mmemb_r1.atlas import load_atlas
    from mmemb_r1.evaluation import evaluate, results_table, save_results

    atlas = load_atlas(args.atlas)
    model = MMEmbR1(args.model, device=args.device)
    results = evaluate(
        model,
        atlas.pairs[args.split],
        atlas.candidates,
        modes=modes,
        batch_size=args.batch_size,
        train_pairs=atlas.pairs["train"],
        config={"model": Path(args.model).resolve().name, "dataset": "Atlas", "split": args.split},
    )
    Console(width=max(100, shutil.get_terminal_size().columns)).print(results_table(results))
    if args.output:
        save_results(results, args.output)
        print(f"results in {args.output}")
    return 0
