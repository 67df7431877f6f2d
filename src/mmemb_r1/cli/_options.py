"""Add the options that several commands share, and load what they name."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def add_shard_options(parser: argparse._ActionsContainer) -> None:
    """Add `--shard-size` and `--part`."""
    parser.add_argument(
        "--shard-size", type=int, default=64, metavar="N", help="inputs per file, lost at most; default: 64"
    )
    parser.add_argument(
        "--part", type=part, default=(1, 1), metavar="I/N", help="the I-th of N parts, for N machines; default: 1/1"
    )


def show_progress(package: str) -> bool:
    """Tell whether to show a bar: if standard error is a terminal. If it is none, `package` logs a line per shard."""
    bar = sys.stderr.isatty()
    logging.basicConfig(format="%(message)s")
    if not bar:
        logging.getLogger(package).setLevel(logging.INFO)
    return bar


def part(text: str) -> tuple[int, int]:
    """
    Parse I/N, the I-th of N parts.

    >>> part("2/3")
    (2, 3)
    """
    first, slash, count = text.partition("/")
    if not (slash and first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; allowed: I/N with I from 1 to N, for example 2/3")
    return int(first), int(count)


def listed(text: str) -> tuple[str, ...]:
    """
    Split a comma-separated list.

    >>> listed("fact, flag")
    ('fact', 'flag')
    """
    return tuple(name.strip() for name in text.split(","))


def add_row_options(parser: argparse._ActionsContainer) -> None:
    """Add `--tasks` and `--per-task`: which rows of the table of `--pairs` are read, see [`read_pairs`]."""
    parser.add_argument(
        "--tasks", type=listed, metavar="A,B", help="only pairs of these tasks or groups of tasks; default: all"
    )
    parser.add_argument("--per-task", type=int, metavar="N", help="only the first N pairs of each task; default: all")


MODULES_FILE = "modules.json"


def load_model(name: str, device: str | None = None, trust_remote_code: bool = False) -> SentenceTransformer:
    """
    Load an mmemb-r1 checkpoint as an [`MMEmbR1`], any other model as a [`SentenceTransformer`].

    Args:
        name: a folder or a Hub id.
        device: say `"cpu"`. Default: the best one there is.
        trust_remote_code: whether code of another model's repository may run. An mmemb-r1 checkpoint needs none.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import load_file_path

    from mmemb_r1 import MMEmbR1
    from mmemb_r1.evaluation.encoders import ADAPTIVE_MODULE

    path = load_file_path(name, MODULES_FILE)
    if path is not None:
        types = [module["type"] for module in json.loads(Path(path).read_text(encoding="utf-8"))]
        if any(kind.split(".")[-1] == ADAPTIVE_MODULE for kind in types):
            return MMEmbR1(name, device=device)
    return SentenceTransformer(name, device=device, trust_remote_code=trust_remote_code)
