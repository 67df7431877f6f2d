"""Check tables without training on them: what `mmemb-r1 pairs check` tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from mmemb_r1.training.settling.faults import Faults, SettleOptions, described, pair_faults
from mmemb_r1.training.settling.measure import Lengths, measure_table
from mmemb_r1.training.settling.reading import Reading
from mmemb_r1.training.settling.settle import FOLDER, OWN_RATIONALES, PairsTable, settle_rationales
from mmemb_r1.training.tables import check_pairs

PERCENTILES = (50, 90, 99, 100)


@dataclass
class TablesReport:
    """
    Hold what is known of tables.

    Attributes:
        sizes: name of a table -> its number of rows.
        lengths: name -> what is measured of it (a column) -> tokens at the `PERCENTILES`, of those that are there.
        duplicates: name -> how many of its pairs hold the same as an earlier one of it.
        faults: of each table, what can't be trained on.
        refused: why a table can't be trained on at all: a column is missing, or an id is there twice.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    faults: list[Faults] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def inspect_tables(
    tables: Mapping[str, Dataset],
    reading: Reading,
    options: SettleOptions,
    rationales: Dataset | None = None,
    *,
    folder: Path = FOLDER,
    workers: int | None = None,
    progress: bool | None = None,
) -> TablesReport:
    """
    Read every row of tables of pairs and, with the first of them, of rationales; the arguments are as for [`settle`].
    """
    report = TablesReport()
    measured: list[tuple[PairsTable, Lengths]] = []
    for name, table in tables.items():
        report.sizes[name] = len(table)
        try:
            check_pairs(table, [*({"pair_id"} & set(table.column_names)), "query", "target"], name)
        except ValueError as error:
            report.refused.append(str(error))
            continue
        pairs = PairsTable(table, name, rationales=OWN_RATIONALES)
        lengths = measure_table(table, pairs.columns, reading, folder, name=name, workers=workers, progress=progress)
        measured.append((pairs, lengths))
        report.lengths[name] = {column: percentiles(tokens) for column, tokens in lengths.tokens.items()}
        report.duplicates[name] = len(table) - len(np.unique(lengths.keys, axis=0))
        report.faults.append(pair_faults(name, lengths, pairs.sides, options, pairs.id_of))
    if rationales is not None and measured:
        name = "the rationales"
        faults, lengths = settle_rationales(
            rationales, *measured[0], reading, options, folder=folder, workers=workers, progress=progress
        )
        report.sizes[name] = len(rationales)
        report.lengths[name] = {column: percentiles(tokens) for column, tokens in lengths.tokens.items()}
        report.faults.append(faults)
    return report


def percentiles(tokens: npt.NDArray[np.int32]) -> list[int]:
    """
    Compute the lengths at the `PERCENTILES` of those that are not 0; an empty list where all are.

    >>> percentiles(np.array([0, 10, 20, 30], np.int32))
    [20, 30, 30, 30]
    """
    there = tokens[tokens > 0]
    return np.percentile(there, PERCENTILES, method="higher").astype(int).tolist() if len(there) else []


def tables_text(report: TablesReport) -> str:
    """Write a report as lines of text."""
    lines = list(report.refused)
    for name, size in report.sizes.items():
        lines.append(f"{name}: {size:,} rows")
        for column, lengths in report.lengths.get(name, {}).items():
            if lengths:
                shown = ", ".join(f"{at} % {length:,}" for at, length in zip(PERCENTILES, lengths, strict=True))
                lines.append(f"  tokens of {column}, percentiles: {shown}")
        if number := report.duplicates.get(name):
            lines.append(f"  {number:,} pairs hold the same as an earlier one")
    lines += [described(faults) for faults in report.faults if faults.listed]
    if not report.refused and not any(faults.listed for faults in report.faults):
        lines.append("all rows can be trained on")
    return "\n".join(lines)
