"""What the commands have in common that work on a table in shards."""

from __future__ import annotations

import argparse
import logging
import sys


def add_shard_options(parser: argparse._ActionsContainer) -> None:
    """Add `--shard-size` and `--part`."""
    parser.add_argument(
        "--shard-size", type=int, default=64, metavar="N", help="inputs per file, lost at most; default: 64"
    )
    parser.add_argument(
        "--part", type=part, default=(1, 1), metavar="I/N", help="the I-th of N parts, for N machines; default: 1/1"
    )


def show_progress(package: str) -> bool:
    """Whether to show a bar: if standard error is a terminal. If it is none, `package` logs a line per shard."""
    bar = sys.stderr.isatty()
    logging.basicConfig(format="%(message)s")
    if not bar:
        logging.getLogger(package).setLevel(logging.INFO)
    return bar


def part(text: str) -> tuple[int, int]:
    """
    >>> part("2/3")
    (2, 3)
    """
    first, slash, count = text.partition("/")
    if not (slash and first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; allowed: I/N with I from 1 to N, for example 2/3")
    return int(first), int(count)
