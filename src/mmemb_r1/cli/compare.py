"""`mmemb-r1 compare`: is one evaluation better than another by more than chance?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmemb_r1.cli._options import listed

HELP = """\
Compare two evaluations of the same queries, A and B, query by query: what B gains over A per task, per group of tasks
and over all, with 95 % intervals and p values from draws of whole clusters of queries (paired bootstrap).

Exit status: 0, or 2 for an error; with --fail-if-worse 1 if B is worse than A over all by more than chance."""

WORSE = 1


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="folder that `mmemb-r1 evaluate --output` wrote")
    parser.add_argument("b", type=Path, metavar="B", help="another one, or the same to compare its modes")
    parser.add_argument(
        "--mode-a",
        metavar="MODE",
        help="say auto, or auto+always with that of candidates; default: that of B, or each in turn",
    )
    parser.add_argument("--mode-b", metavar="MODE", help="default: that of A, or each in turn")
    parser.add_argument(
        "--tasks", type=listed, metavar="NAMES", help="comma-separated, of tasks or groups; default: all"
    )
    parser.add_argument("--num-samples", type=int, metavar="N", help="draws; default: 5000")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws; default: 0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go as JSON")
    parser.add_argument(
        "--fail-if-worse", action="store_true", help="exit with 1 if the upper end over all is below zero, in any mode"
    )


def run(args: argparse.Namespace) -> int:
    from mmemb_r1.evaluation.compare import compare_runs, paired_table, remark
    from mmemb_r1.evaluation.report.text import print_table
    from mmemb_r1.evaluation.run_folder import save_results
    from mmemb_r1.evaluation.statistics import NUM_PAIRED_SAMPLES as NUM_SAMPLES
    from mmemb_r1.evaluation.tasks import ALL

    found = compare_runs(
        args.a,
        args.b,
        mode_a=args.mode_a,
        mode_b=args.mode_b,
        tasks=args.tasks,
        num_samples=NUM_SAMPLES if args.num_samples is None else args.num_samples,
        seed=args.seed,
        progress=True,
    )
    print(f"A: {args.a} ({found['a'].get('model', 'unnamed')})\nB: {args.b} ({found['b'].get('model', 'unnamed')})")
    for comparison in found["comparisons"]:
        print_table(paired_table(comparison))
        print(remark(comparison))
    if args.json:
        save_results(found, args.json)
        print(f"figures in {args.json}", file=sys.stderr)
    print("Next: `mmemb-r1 diagnose --model MODEL` tells whether a model reads its rationales", file=sys.stderr)
    worse = any(one["summary"][ALL]["difference"]["high"] < 0 for one in found["comparisons"])
    return WORSE if args.fail_if_worse and worse else 0
