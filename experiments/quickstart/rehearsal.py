"""Write what the quickstart's joint phase draws from: selected rationales, and own ones where no worker was asked."""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow.parquet as pq

from experiments.pipeline.posterior import quality_of, right_share, training_table
from mmemb_r1.atlas import load_atlas
from mmemb_r1.cli._options import listed
from mmemb_r1.runs import replaced_file
from mmemb_r1.training.selection.table import CANDIDATES, SELECTED
from mmemb_r1.training.tables import SELECTION_NOTE, read_selection_note


def describe_selection(folder: Path, atlas: Path) -> str:
    """Tell in a sentence how good a selection is, which is known because one of the four workers is known to help."""
    if (drawn := right_share(folder / SELECTED)) is None:
        return "no rationale was kept"
    quality = quality_of(pq.read_table(folder / CANDIDATES), load_atlas(atlas).pairs["train"])["all"]
    return (
        f"{pq.read_metadata(folder / SELECTED).num_rows} rationales kept: {quality['precision']:.0%} of them by the "
        f"worker that helps (a quarter of all are), and {quality['recall']:.0%} of that worker's; by their posterior "
        f"weights, as they will be drawn, {drawn:.0%} are that worker's"
    )


def main() -> None:
    """Write the table, and say how good the selection is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--atlas", required=True, type=Path, help="what `mmemb-r1 atlas build` wrote")
    parser.add_argument("--selection", required=True, type=Path, help="what `mmemb-r1 select` wrote")
    parser.add_argument("--tasks", required=True, type=listed, help="those that workers were asked about")
    parser.add_argument("--output", required=True, type=Path, help="the table, Parquet")
    args = parser.parse_args()
    table = training_table(args.selection / SELECTED, load_atlas(args.atlas).pairs["train"], pooled=args.tasks)
    note = f"{read_selection_note(args.selection / SELECTED)}; beside them the own ones of tasks without workers"
    rows = table.with_format("arrow")[:]
    with replaced_file(args.output) as temporary, pq.ParquetWriter(temporary, rows.schema) as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata({SELECTION_NOTE: note})
    print(describe_selection(args.selection, args.atlas))


if __name__ == "__main__":
    main()
