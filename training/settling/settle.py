"""Settle before the first step which rows of the tables are trained on, the same ones in all processes."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from huggingface_hub.constants import HF_HOME

from mmemb_r1.runs import replaced_file
from mmemb_r1.training.distributed import on_main_process
from mmemb_r1.training.settling.faults import (
    Faults,
    SettleOptions,
    Skipped,
    check_faults,
    described,
    pair_faults,
    rationale_faults,
)
from mmemb_r1.training.settling.measure import Columns, Lengths, measure_table
from mmemb_r1.training.settling.reading import Reading
from mmemb_r1.training.tables import StoredValues, positions_in, stored_column

logger = logging.getLogger(__name__)
SKIPPED_FILE = "skipped.jsonl"
FOLDER = Path(HF_HOME) / "mmemb-r1" / "lengths"  # of what was measured
OWN_RATIONALES = {"query_rationale": "query", "target_rationale": "target"}  # of a pairs table -> what they are about
ALL_OF_THEM = "`mmemb-r1 pairs check` lists all of them."


@dataclass(frozen=True)
class PairsTable:
    """
    Name a table of pairs and what of it is read.

    Args:
        table: the pairs.
        name: of the table, for messages.
        inputs: columns that are read, as far as the table has them; `negatives` is a list of inputs.
        rationales: column of rationales (lists of segments) -> column of the inputs that they are about.
        after: column -> tokens that will follow each of its prompts.
    """

    table: Dataset
    name: str = "the pairs table"
    inputs: tuple[str, ...] = ("query", "target", "negatives")
    rationales: Mapping[str, str] = field(default_factory=dict)
    after: Mapping[str, int] = field(default_factory=dict)

    @property
    def sides(self) -> dict[str, str]:
        """Those of `rationales` that the table has."""
        return {column: side for column, side in self.rationales.items() if column in self.table.column_names}

    @property
    def columns(self) -> Columns:
        """What of the table is measured."""
        inputs = tuple(column for column in self.inputs if column in self.table.column_names)
        return Columns(inputs, tuple(self.sides))

    def id_of(self, row: int) -> str | None:
        """Look up the `pair_id` of a row."""
        return self.table.select_columns(["pair_id"])[row]["pair_id"] if "pair_id" in self.table.column_names else None


@dataclass
class Settlement:
    """
    Hold what is left to train on.

    Attributes:
        tables: of each table of pairs, the rows that are used.
        without: of each table, column of rationales -> the rows (of `tables`) whose rationale is not used.
        rationales: of the table of rationales, the rows that are used; `None` where there is none.
        skipped: what is not used, and why.
    """

    tables: list[Dataset]
    without: list[dict[str, frozenset[int]]]
    rationales: Dataset | None
    skipped: list[Skipped]

    def facts(self) -> dict[str, str]:
        """Return what makes a run another one: a digest of what is not used; nothing where all is used."""
        if not self.skipped:
            return {}
        rows = json.dumps([[one.table, one.row, one.side] for one in self.skipped])
        return {"skipped": f"{len(self.skipped)}, {blake2b(rows.encode(), digest_size=16).hexdigest()}"}

    def told(self) -> dict[str, str]:
        """Tell for the model card how many rows of which table are not used; nothing where all are."""
        counts = Counter(one.table for one in self.skipped)
        told = ", ".join(f"{count:,} of {table}" for table, count in counts.items())
        return {"left out as broken or too long": told} if told else {}


def settle(
    tables: Sequence[PairsTable],
    reading: Reading,
    options: SettleOptions,
    rationales: Dataset | None = None,
    *,
    folder: Path = FOLDER,
    workers: int | None = None,
    progress: bool | None = None,
) -> Settlement:
    """
    Read every row once, and leave out, or refuse, what can't be trained on. All processes of a run call it and get the
    same; the main one reads.

    Args:
        tables: of pairs. `rationales` are about those of the first.
        reading: how the model reads inputs and rationales.
        options: the limits, and what becomes of rows that are broken or too long.
        rationales: a table with `pair_id`, `side`, `text` and, optionally, `segments` and `worker`.
        folder: where measurements are kept, for this run and others.
        workers, progress: see [`measure_table`].

    Raises:
        ValueError: if rows are broken or too long and `on_error` is `"raise"`, or they are more than `max_skipped`
            allows. No process goes on then.
    """

    def find(tick: Callable[[], None]) -> list[Faults]:
        found, lengths = [], []
        for one in tables:
            measured = measure_table(
                one.table, one.columns, reading, folder, name=one.name, workers=workers, progress=progress, tick=tick
            )
            lengths.append(measured)
            found.append(pair_faults(one.name, measured, one.sides, options, one.id_of, after=one.after))
        if rationales is not None:
            faults, _ = settle_rationales(
                rationales,
                tables[0],
                lengths[0],
                reading,
                options,
                folder=folder,
                workers=workers,
                progress=progress,
                tick=tick,
            )
            found.append(faults)
        check_faults(found, options, ALL_OF_THEM)
        for wrong in found:
            if wrong.listed:
                logger.warning("%s They are left out.", described(wrong))
        return found

    found = on_main_process(find)
    kept = [_kept(given.table, faults) for given, faults in zip(tables, found, strict=False)]
    without = [
        {column: _moved(rows, faults) for column, rows in faults.without.items()} for faults in found[: len(tables)]
    ]
    return Settlement(
        kept,
        without,
        None if rationales is None else _kept(rationales, found[-1]),
        [skipped for faults in found for skipped in faults.listed],
    )


def settle_rationales(
    rationales: Dataset,
    pairs: PairsTable,
    of_pairs: Lengths,
    reading: Reading,
    options: SettleOptions,
    *,
    name: str = "the rationales",
    folder: Path = FOLDER,
    workers: int | None = None,
    progress: bool | None = None,
    tick: Callable[[], None] = lambda: None,
) -> tuple[Faults, Lengths]:
    """
    Measure a table of rationales, and find those that are too long, alone or after the inputs that they are about.

    Args:
        rationales: the table; see [`settle`] for this and the rest.
        pairs, of_pairs: the pairs that they are about, and what was measured of them.
    """
    column = "segments" if "segments" in rationales.column_names else "text"
    lengths = measure_table(
        rationales,
        Columns(rationales=(column,)),
        reading,
        folder,
        name=name,
        workers=workers,
        progress=progress,
        tick=tick,
    )
    before = np.zeros(len(rationales), np.int32)
    if {"pair_id", "side"} <= set(rationales.column_names) and "pair_id" in pairs.table.column_names:
        rows = positions_in(stored_column(rationales, "pair_id"), StoredValues(pairs.table, "pair_id"))
        sides = stored_column(rationales, "side")
        for side in ("query", "target"):
            here = pc.equal(sides.cast(pa.string()), side).fill_null(False).to_numpy() & (rows >= 0)
            before[here] = of_pairs.tokens[side][rows[here]]
    wrote = stored_column(rationales, "worker").to_pylist() if "worker" in rationales.column_names else []
    names = rationales.select_columns([one for one in ("pair_id", "side") if one in rationales.column_names])

    def of(row: int) -> tuple[str, str]:
        return names[row].get("pair_id", ""), names[row].get("side", "")

    return rationale_faults(name, lengths, column, before, options, of, wrote), lengths


def _kept(table: Dataset, faults: Faults) -> Dataset:
    if not len(faults.rows):
        return table
    return table.select(np.setdiff1d(np.arange(len(table)), faults.rows))


def _moved(rows: Any, faults: Faults) -> frozenset[int]:
    """Find the rows in the table from which those that are left out are gone."""
    return frozenset((rows - np.searchsorted(faults.rows, rows)).tolist())


def write_skipped(folder: Path, skipped: Sequence[Skipped]) -> None:
    """Write what is left out as JSON lines, `skipped.jsonl`, or take the file away where all is used."""
    path = folder / SKIPPED_FILE
    if not skipped:
        path.unlink(missing_ok=True)
        return
    write_lines(path, skipped)


def write_lines(path: Path, skipped: Iterable[Skipped]) -> None:
    """Write a JSON line for each: `table`, `row`, `pair_id`, `side`, `reason` and, of rationales, `worker`."""
    with replaced_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for one in skipped:
            row = {name: value for name, value in one._asdict().items() if name != "worker" or value is not None}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
