"""`mmemb-r1 import`: public data sets, and files of one's own, as tables of pairs and rationales."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmemb_r1.cli._options import add_columns_option, listed

HELP = """\
Read a public data set, or files of your own, and write tables of pairs and of the rationales in it, which `mmemb-r1
select` and `mmemb-r1 train` read. Prompts, marks and control tokens of other models are stripped, blank pictures
dropped, the files of pictures and videos looked for; rows that can't be imported are counted and listed. The same
command goes on where it was stopped. docs/public-data.md tells how to get each set.

NAME is one of
  ume-r1, rime, twn, embed-rl            pairs with rationales, for supervised and reinforcement learning
  mmeb-train, vidore, visrag, llava-hound  pairs
  jsonl, csv, parquet                    files with columns of our names, or mapped by --columns
  folder                                 pictures with a metadata.csv or metadata.jsonl, and --columns
  hub                                    a data set of the Hub, owner/name:config/split, and --columns
  module:function                        your own: takes a row, returns a pair"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the format")
    parser.add_argument("source", metavar="SOURCE", help="a file, a folder, or a Hub id")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="gets the tables")
    parser.add_argument(
        "--media",
        type=Path,
        metavar="DIR",
        help="where the paths of pictures and videos start; default: the folder of each file",
    )
    add_columns_option(parser, "jsonl, csv, parquet, folder and hub")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N pairs of each task in each file")
    parser.add_argument("--tasks", type=listed, metavar="A,B", help="only these; default: all")
    parser.add_argument("--files", metavar="PATTERN", help="only files that match, say '*original*'; default: all")
    parser.add_argument(
        "--answers",
        default="join",
        metavar="HOW",
        help="what follows a thought: join makes it the last line (the default), apart a part that may become a "
        "round of its own, drop drops it",
    )
    parser.add_argument("--decode", action="store_true", help="decode every picture, instead of only looking for it")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that share the files; default: 1")
    parser.add_argument(
        "--shard-size", type=int, default=10_000, metavar="N", help="rows per file, lost at most; default: 10000"
    )
    parser.add_argument(
        "--model", metavar="DIR", help="a checkpoint: tell how many rationales are too long for it, in its tokens"
    )
    parser.add_argument(
        "--max-rationale-tokens",
        type=int,
        default=256,
        metavar="N",
        help="what is too long for --model; default: 256, as for `mmemb-r1 train joint`",
    )


def run(args: argparse.Namespace) -> int:
    from mmemb_r1.training.importing.run import import_pairs

    if args.model is not None:
        from mmemb_r1.training.vlm import checkpoint_config

        checkpoint_config(args.model)  # before the work, for it is needed at its end
    summary = import_pairs(
        args.name,
        args.source,
        args.output,
        media=args.media,
        columns=args.columns,
        limit=args.limit,
        tasks=args.tasks,
        files=args.files,
        answers=args.answers,
        decode=args.decode,
        jobs=args.jobs,
        shard_size=args.shard_size,
    )
    print(*summary.lines(), sep="\n")
    pairs, rationales = args.output / "pairs", args.output / "rationales"
    print(f"the pairs are in {pairs}; what was skipped, and why, is in {args.output / 'skipped.jsonl'}")
    if not summary.total.rationales:
        print(f"next: mmemb-r1 pairs check {pairs} --model DIR")
        return 0
    if args.model is not None:
        from mmemb_r1.training.importing.lengths import lengths_text

        print(lengths_text(rationales, args.model, args.max_rationale_tokens))
    print(f"the rationales are in {rationales}; read all of it, and keep those that help:")
    print(f"mmemb-r1 pairs check {pairs} --rationales {rationales} --model DIR")
    print(f"mmemb-r1 select --pairs {pairs} --rationales {rationales} --evaluator MODEL --output DIR")
    return 0
