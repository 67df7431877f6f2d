"""`mmemb-r1 diagnose`: does a checkpoint read its rationales?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmemb_r1.cli._options import add_encoding_options, add_source_options, asked_source, model_name

HELP = """\
The shortcut test: does a checkpoint read its rationales, or only write them? Every query thinks; then its rationale is
taken away, emptied, swapped for another query's and shuffled, and scores and vectors are compared.

Exit status: 0 if it reads them, 1 if it ignores them, 3 if that can't be told from these queries, 2 for an error.
Thresholds and what to make of them: docs/diagnose.md."""

STATUS = {"reads": 0, "ignores": 1, "undecided": 3}
NEXT = {
    "reads": "`mmemb-r1 train gate` or `mmemb-r1 calibrate` decide when it thinks",
    "ignores": "docs/diagnose.md says what to change before the next `mmemb-r1 train joint`",
    "undecided": "run it again on more queries, or on tasks that need a rationale",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="the checkpoint: a folder or a Hub id")
    add_source_options(parser)
    parser.add_argument("--max-queries", type=int, metavar="N", help="of a task, drawn at random; default: all")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of swaps and draws; default: 0")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where shortcut.json and a row per query go, and a killed test goes on",
    )
    add_encoding_options(parser, max_reasoning_tokens=None, max_reasoning_rounds=None, batch_size=64)


def run(args: argparse.Namespace) -> int:
    from mmemb_r1.cli._options import load_model
    from mmemb_r1.evaluation.diagnose.run import ShortcutSettings, run_diagnosis
    from mmemb_r1.evaluation.diagnose.verdict import shortcut_table, verdict_line
    from mmemb_r1.evaluation.report.text import print_table
    from mmemb_r1.evaluation.tasks import ALL

    settings = ShortcutSettings(
        seed=args.seed,
        max_queries=args.max_queries,
        batch_size=args.batch_size,
        max_reasoning_tokens=args.max_reasoning_tokens,
        max_reasoning_rounds=args.max_reasoning_rounds,
    )
    source, name = asked_source(args), model_name(args.model)
    results = run_diagnosis(
        load_model(args.model, args.device),
        source,
        settings,
        output=args.output,
        config={"model": name},
    )
    print_table(shortcut_table(results))
    print(verdict_line(results, name))
    if args.output:
        print(f"figures in {args.output}", file=sys.stderr)
    verdict = results["summary"][ALL]["verdict"]
    print(f"Next: {NEXT[verdict]}", file=sys.stderr)
    return STATUS[verdict]
