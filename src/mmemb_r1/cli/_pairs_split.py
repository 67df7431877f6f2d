"""`mmemb-r1 pairs split`: hold pairs out of a table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmemb_r1.cli._options import PAIRS_TABLE, add_row_options, check_table, pairs_options

if TYPE_CHECKING:
    from datasets import Dataset

TRAIN, HELD_OUT = "train.parquet", "held-out.parquet"
HELP = f"""\
Hold pairs out of a table, to measure on what was not trained on. The output is a folder with {TRAIN} and {HELD_OUT};
paths of pictures and videos in them are absolute. Pairs with equal queries stay together, so that no query is in both.
The same command makes the same files."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pairs", type=Path, metavar="TABLE", help=PAIRS_TABLE)
    add_row_options(parser)
    parser.add_argument(
        "--share", type=float, default=0.05, metavar="X", help="of the queries that is held out; default: 0.05"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw; default: 0")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="gets both files")


def run(args: argparse.Namespace) -> int:
    check_table("TABLE", args.pairs)
    if not 0 < args.share < 1:
        raise ValueError(f"--share {args.share:g}; allowed: a share of the queries above 0 and below 1")

    import numpy as np

    from mmemb_r1.content import content_key, inputs_of
    from mmemb_r1.progress import progress_bar
    from mmemb_r1.training.gate_phase import held_out
    from mmemb_r1.training.tables import PAIR_COLUMNS, read_pairs

    pairs = read_pairs(args.pairs, PAIR_COLUMNS, **pairs_options(args))
    with progress_bar() as bar:
        queries = bar.track(inputs_of(pairs["query"]), total=len(pairs), description="queries")
        chosen = held_out([content_key(query) for query in queries], args.share, args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    for name, rows in ((TRAIN, np.flatnonzero(~chosen)), (HELD_OUT, np.flatnonzero(chosen))):
        _write_rows(pairs.select(rows), args.output / name)
        print(f"{len(rows):,} pairs are in {args.output / name}")
    return 0


def _write_rows(pairs: Dataset, path: Path) -> None:
    """Write a table as Parquet, a few rows at a time."""
    import pyarrow.parquet as pq

    from mmemb_r1.runs import replaced_file
    from mmemb_r1.tables.rows import ROWS_AT_ONCE

    schema = pairs.features.arrow_schema
    with replaced_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for rows in pairs.with_format("arrow").iter(ROWS_AT_ONCE):
            writer.write_table(rows.cast(schema))
