"""`mmemb-r1 index`: index a folder or a table of your own, or bring its index up to date."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mmemb_r1.cli._options import (
    add_base_option,
    add_encoding_options,
    add_engine_options,
    add_second_look_option,
    add_thinker_options,
    engine_given,
    use_thinker,
)

HELP = """\
Index what SOURCE holds, so that `mmemb-r1 search` finds it:
  a folder  of pictures, videos, PDFs (page by page) and texts; or one such file
  a table   CSV, JSON lines, Parquet, a folder of these, of pictures with metadata.csv or of save_to_disk, a data set
            of the Hub; columns id, text, image, video (paths), all others are metadata that searches filter by

The same command again brings the index up to date: only what is new or changed is embedded, what is gone is deleted. A
run that was killed goes on. What can't be read is listed, and does not end the run."""

SHOWN = 20  # unreadable items that are told one by one


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a folder, a file, or a data set of the Hub")
    parser.add_argument("--model", required=True, metavar="DIR", help="the checkpoint: a folder or a Hub id")
    parser.add_argument("--index", required=True, metavar="DIR", help="the folder of the index")
    parser.add_argument(
        "--columns",
        nargs="+",
        metavar="OURS=THEIRS",
        help="columns of a table with other names: image=path text=caption id=name; default: they have our names",
    )
    add_base_option(parser, "a table")
    parser.add_argument("--moved", action="store_true", help="SOURCE is what was indexed before, at another place")
    parser.add_argument(
        "--precision",
        choices=("float32", "int8", "binary"),
        help="make an index for approximate search, of vectors in this precision; default: int8 from 100,000 items on",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    add_thinker_options(parser)
    add_engine_options(parser)
    thinking = dict.fromkeys(("reasoning", "gate_threshold", "max_reasoning_tokens", "max_reasoning_rounds"))
    add_second_look_option(parser)
    add_encoding_options(
        parser,
        **thinking,
        truncate_dim=None,
        prompt="the checkpoint's for documents",
        allow_remote_media="",
        batch_size=32,
        max_batch_tokens="16384",
        decode_batch_size="4 x --batch-size",
        shard_size="128",
    )


def run(args: argparse.Namespace) -> int:
    from mmemb_r1 import MMEmbR1
    from mmemb_r1.index import build_index
    from mmemb_r1.tables.columns import parse_columns

    names = ["reasoning", "gate_threshold", "max_reasoning_tokens", "max_reasoning_rounds", "second_look"]
    names += ["truncate_dim", "prompt"]
    names += ["batch_size", "max_batch_tokens", "decode_batch_size", "shard_size", "precision", "device"]
    options: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    model: Any = args.model
    if args.thinker or args.thinker_form or args.engine or args.engine_options:
        model = MMEmbR1(args.model, device=args.device, **engine_given(args))
        use_thinker(model, args)
    summary = build_index(
        args.source,
        model,
        args.index,
        columns=parse_columns(args.columns),
        base=args.base,
        moved=args.moved,
        allow_remote_media=args.allow_remote_media,
        **options,
    )
    counts = {name: getattr(summary, name) for name in ("added", "changed", "deleted", "unchanged", "embedded")}
    if args.json:
        told = [one._asdict() for one in summary.unreadable]
        print(json.dumps({**counts, "unreadable": told, "passed_over": summary.passed_over}, ensure_ascii=False))
        return 0
    for one in summary.unreadable[:SHOWN]:
        print(f"not indexed: {one.id}: {one.reason}", file=sys.stderr)
    if more := len(summary.unreadable) - SHOWN:
        if more > 0:
            print(f"not indexed: {more} more (--json lists all)", file=sys.stderr)
    if summary.passed_over:
        others = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in summary.passed_over.items())
        print(f"passed over, because nothing reads such files: {others}", file=sys.stderr)
    told_counts = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{Path(args.index)}: {told_counts}, {len(summary.unreadable)} unreadable", file=sys.stderr)
    return 0
