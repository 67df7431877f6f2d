"""`mmemb-r1 pairs`: look into pairs tables, and hold pairs out, before a model is trained on them."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmemb_r1.cli import _pairs_split
from mmemb_r1.cli._options import add_base_option, add_columns_option, add_limit_options, check_table

WRONG = 1  # exit status where rows can't be trained on
CHECK_HELP = """\
Read every row of pairs tables once, as training does before its first step: open and decode each picture and video,
and count lengths in the model's own tokens. Told are the number of pairs, lengths, inputs that are broken or too long,
rationales that are too long by worker, and pairs that are there more than once. The exit status is 1 if rows can't be
trained on. What was measured is kept, so that a check that was stopped goes on, and training need not read again."""
HELP = "Look into pairs tables before a model is trained on them, or hold pairs out of one."
LONGEST_RATIONALE = 256


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="find rows that can't be trained on", description=CHECK_HELP)
    check.formatter_class = argparse.RawDescriptionHelpFormatter
    split = actions.add_parser("split", help="hold pairs out of a table", description=_pairs_split.HELP)
    split.formatter_class = argparse.RawDescriptionHelpFormatter
    _pairs_split.configure(split)
    tables = "pairs tables: files, folders or data sets of the Hub"
    check.add_argument("tables", nargs="+", type=Path, metavar="TABLE", help=tables)
    check.add_argument(
        "--model", required=True, metavar="DIR", help="the checkpoint to be trained: a folder or a Hub id"
    )
    check.add_argument(
        "--rationales",
        type=Path,
        metavar="FILE",
        help="selected.parquet, or what `mmemb-r1 rationales` or `import` wrote",
    )
    add_columns_option(check, "the tables")
    add_base_option(check)
    add_limit_options(check, LONGEST_RATIONALE)
    check.add_argument(
        "--max-rounds", type=int, default=1, metavar="N", help="rounds that rationales are trained in; default: 1"
    )
    check.add_argument("--workers", type=int, metavar="N", help="processes; default: one per core")
    check.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="gets a JSON line for everything that is wrong; default: not written",
    )


def run(args: argparse.Namespace) -> int:
    return {"check": run_check, "split": _pairs_split.run}[args.action](args)


def run_check(args: argparse.Namespace) -> int:
    """`mmemb-r1 pairs check`."""
    for name, least in (("workers", 0), ("max_rounds", 1)):
        if (value := getattr(args, name)) is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} {value}; allowed: whole numbers from {least} on")
    for path in args.tables:
        check_table("TABLE", path)

    from mmemb_r1.modeling.options_mmemb_r1 import context_length
    from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module
    from mmemb_r1.training.rationales.table import read_rationales
    from mmemb_r1.training.settling.faults import SettleOptions
    from mmemb_r1.training.settling.reading import Reading
    from mmemb_r1.training.settling.report import inspect_tables, tables_text
    from mmemb_r1.training.settling.settle import write_lines
    from mmemb_r1.training.tables import read_pairs
    from mmemb_r1.training.vlm import checkpoint_config

    tables = {str(path): read_pairs(path, columns=args.columns, base=args.base) for path in args.tables}
    rationales = None
    if args.rationales is not None:
        drawn = (args.rationales / "shards").is_dir()
        rationales = (read_rationales if drawn else read_pairs)(args.rationales)
    checkpoint_config(args.model)
    module = MMEmbR1Module.load(args.model, local_files_only=Path(args.model).is_dir())
    config = module.model.config
    reading = Reading.of(module.processor, config, args.max_rounds)
    options = SettleOptions(
        max_input_tokens=args.max_input_tokens or context_length(config),
        max_rationale_tokens=args.max_rationale_tokens,
    )
    report = inspect_tables(tables, reading, options, rationales, workers=args.workers)
    print(tables_text(report))
    wrong = [one for faults in report.faults for one in faults.listed]
    if args.output is not None:
        write_lines(args.output, wrong)
        print(f"{len(wrong)} lines are in {args.output}")
    return WRONG if wrong or report.refused else 0
