"""Measure all rows of a table, in several processes, as far as they were not measured before."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from mmemb_r1.progress import progress_bar
from mmemb_r1.training.settling.reading import MeasuredInput, Reading, input_key, rationale_key
from mmemb_r1.training.settling.store import MeasuredStore
from mmemb_r1.training.tables import as_numbers

ROWS_AT_ONCE = 32  # of one piece of work for a process
ROWS_PER_PROCESS = 1024  # a table with fewer is done before another process has started
_KEEP_EVERY = 5.0  # seconds


@dataclass(frozen=True)
class Columns:
    """
    Name what is measured of each row of a table.

    Args:
        inputs: columns of inputs; one of lists of inputs counts as its longest one.
        rationales: columns of rationales: lists of segments, or texts.
    """

    inputs: tuple[str, ...] = ()
    rationales: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return self.inputs + self.rationales


class Broken(NamedTuple):
    """Say what can't be read: the row, counted from 0, the column or `"negatives 2"`, counted from 0, and why."""

    row: int
    part: str
    reason: str


@dataclass
class Lengths:
    """
    Hold what was measured of a table with N rows.

    Attributes:
        tokens: column -> `(N,)` int32 tokens, 0 where there is nothing or it can't be read.
        longest: column -> `(N,)` int32 tokens of the longest round; of columns of rationales.
        keys: `(N, 2)` uint64, equal for rows whose columns hold the same.
        broken: what can't be read, in order.
    """

    tokens: dict[str, npt.NDArray[np.int32]]
    longest: dict[str, npt.NDArray[np.int32]]
    keys: npt.NDArray[np.uint64]
    broken: list[Broken]


class _Part(NamedTuple):
    """Hold a thing to be measured: its row and column, its name, its key, and how it is measured."""

    row: int
    column: str
    name: str
    key: bytes
    measure: Callable[[], MeasuredInput]


class _Piece(NamedTuple):
    """Hold what was measured of some rows, from `start` on, and what of it is new."""

    start: int
    lengths: Lengths
    new: dict[bytes, MeasuredInput]


class _Pieces(TorchDataset[_Piece]):
    """Measure the rows of a table piece by piece, in whichever process asks for one."""

    def __init__(self, table: Dataset, columns: Columns, reading: Reading, store: MeasuredStore) -> None:
        self.table = table.select_columns(list(columns.names)).with_format("arrow")
        self.columns, self.reading, self.store = columns, reading, store

    def __len__(self) -> int:
        return -(-len(self.table) // ROWS_AT_ONCE)

    def __getitem__(self, number: int) -> _Piece:
        start = number * ROWS_AT_ONCE
        stored = self.table[start : min(start + ROWS_AT_ONCE, len(self.table))]
        parts = [part for column in self.columns.names for part in self._parts(column, stored[column])]
        known = self.store.get(list({part.key for part in parts}))
        new: dict[bytes, MeasuredInput] = {}
        for part in parts:
            if part.key not in known:
                known[part.key] = new[part.key] = part.measure()
        return _Piece(start, _gathered(self.columns, len(stored), parts, known, start), new)

    def _parts(self, column: str, values: Any) -> Iterator[_Part]:
        listed = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
        for row, stored in enumerate(values):
            value = stored.as_py()
            if column in self.columns.rationales:
                segments = [value] if isinstance(value, str) else value
                if segments and all(isinstance(text, str) for text in segments):  # who uses others refuses them
                    measure = partial(self.reading.measure_rationale, segments)
                    yield _Part(row, column, column, rationale_key(segments), measure)
                continue
            for place, one in enumerate(value or []) if listed else [(None, value or {})]:
                name = column if place is None else f"{column} {place}"
                measure = partial(self.reading.measure_input, one)
                yield _Part(row, column, name, input_key(one), measure)


def _gathered(
    columns: Columns, size: int, parts: Sequence[_Part], known: Mapping[bytes, MeasuredInput], start: int
) -> Lengths:
    lengths = _empty(columns, size)
    together = [b""] * size
    for part in parts:
        found = known[part.key]
        tokens, longest = lengths.tokens[part.column], lengths.longest[part.column]
        tokens[part.row] = max(tokens[part.row], found.tokens)
        longest[part.row] = max(longest[part.row], found.longest)
        together[part.row] += part.key
        if found.reason is not None:
            lengths.broken.append(Broken(start + part.row, part.name, found.reason))
    lengths.keys[:] = as_numbers([blake2b(joined, digest_size=16).digest() for joined in together])
    return lengths


def _empty(columns: Columns, size: int) -> Lengths:
    return Lengths(
        tokens={name: np.zeros(size, np.int32) for name in columns.names},
        longest={name: np.zeros(size, np.int32) for name in columns.names},
        keys=np.zeros((size, 2), np.uint64),
        broken=[],
    )


def measure_table(
    table: Dataset,
    columns: Columns,
    reading: Reading,
    folder: Path,
    *,
    name: str = "the pairs table",
    workers: int | None = None,
    progress: bool | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Lengths:
    """
    Measure the columns of a table. What was measured before, for any table, is not measured again.

    Args:
        table: the table; pictures are opened whether they are stored as paths or as bytes.
        columns: what of it; all have to be there.
        reading: how a model reads them.
        folder: where measurements are kept, a file per way of reading.
        name: of the table, for messages.
        workers: processes. Default: one per core, and none for a small table.
        progress: whether a bar is shown on standard error, if that is a terminal; without one, progress is logged
            every 30 seconds (`mmemb_r1.progress`, level INFO). Default: `True`.
        tick: is called after every few rows.

    Raises:
        ValueError: if a process that measures is killed, or the file of measurements is damaged.
    """
    store = MeasuredStore(folder / f"{reading.fingerprint()}.sqlite")
    pieces = _Pieces(table, columns, reading, store)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = min(cores, len(table) // ROWS_PER_PROCESS) if workers is None else workers
    collate: Any = _as_it_is  # of one piece: the type that torch states is that of a list of them
    loader = DataLoader(pieces, batch_size=None, shuffle=False, num_workers=wanted, collate_fn=collate)
    whole, unsaved = _empty(columns, len(table)), dict[bytes, MeasuredInput]()
    saved = time.monotonic()
    try:
        with progress_bar(progress) as bar:
            task = bar.add_task(f"reading {name}", total=len(table))
            for piece in _read(loader, name):
                _put(whole, piece)
                unsaved |= piece.new
                now = time.monotonic()
                bar.update(task, completed=piece.start + len(piece.lengths.keys))
                if now - saved > _KEEP_EVERY:
                    store.put(unsaved)
                    unsaved, saved = {}, now
                tick()
    finally:
        store.put(unsaved)
    return whole


def _read(loader: DataLoader[_Piece], name: str) -> Iterator[_Piece]:
    try:
        yield from loader
    except RuntimeError as error:  # a process was killed: too little memory, or a decoder that crashes
        raise ValueError(
            f"a process that read {name} was lost ({error}). The same call goes on from where it was; read in fewer "
            "processes if memory was short."
        ) from error


def _put(whole: Lengths, piece: _Piece) -> None:
    rows = slice(piece.start, piece.start + len(piece.lengths.keys))
    for name in whole.tokens:
        whole.tokens[name][rows] = piece.lengths.tokens[name]
        whole.longest[name][rows] = piece.lengths.longest[name]
    whole.keys[rows] = piece.lengths.keys
    whole.broken += piece.lengths.broken


def _as_it_is(piece: _Piece) -> _Piece:
    """Keep `DataLoader` from making tensors of what it passes on."""
    return piece
