"""Say where the tasks of `evaluate` and `diagnose` come from."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mmemb_r1.cli._options import listed

if TYPE_CHECKING:
    from mmemb_r1.evaluation.tasks import TaskSource


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add `--atlas`, `--mmeb`, `--pairs` or `--reader`, of which one is required, and what chooses their tasks."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--atlas", metavar="DIR", help="what `mmemb-r1 atlas build` wrote")
    source.add_argument("--mmeb", metavar="DIR", help="a local copy of MMEB-V2")
    source.add_argument(
        "--pairs", metavar="FILE", help="a pairs table (Parquet): a query competes for the targets of its task"
    )
    source.add_argument("--reader", metavar="MODULE:FUNCTION", help="a reader of your own, which reads --source")
    parser.add_argument("--source", metavar="X", help="what --reader is given: a folder, a file, a name")
    parser.add_argument("--split", choices=("policy", "validation", "test"), help="of Atlas; default: test")
    parser.add_argument(
        "--tasks",
        metavar="NAMES",
        help="comma-separated, of tasks or groups, say multi-hop, video or image/qa; default: all that are there",
    )


def listed_tasks(args: argparse.Namespace) -> tuple[str, ...] | None:
    """Take apart `--tasks`."""
    return None if args.tasks is None else listed(args.tasks)


def asked_source(args: argparse.Namespace, *, limit: int | None = None, num_frames: int | None = None) -> TaskSource:
    """Read the tasks that were asked for."""
    from mmemb_r1.evaluation.readers import read_tasks

    for option, of in (("split", "atlas"), ("source", "reader")):
        if getattr(args, option) is not None and getattr(args, of) is None:
            raise ValueError(f"--{option} is for --{of}; leave it out")
    names = listed_tasks(args)
    if args.reader is not None:
        if args.source is None:
            raise ValueError(f"--reader {args.reader} needs to be told what to read: --source X")
        return read_tasks(args.reader, args.source, names=names, limit=limit)
    if args.pairs is not None:
        return read_tasks("pairs", args.pairs, names=names, limit=limit)
    if args.mmeb is not None:
        return read_tasks("mmeb", args.mmeb, names=names, limit=limit, num_frames=num_frames)
    return read_tasks("atlas", args.atlas, names=names, limit=limit, split=args.split or "test")
