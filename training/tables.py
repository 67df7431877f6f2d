"""Read and check the tables that the stages exchange."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmemb_r1.content import given_parts
from mmemb_r1.modeling.inputs_mmemb_r1 import PARTS
from mmemb_r1.tables.columns import ColumnMap, columns_hint
from mmemb_r1.tables.files import table_files
from mmemb_r1.tables.pairs import open_pairs, table_name
from mmemb_r1.tables.rows import NOT_PARQUET, ROWS_AT_ONCE

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

    from mmemb_r1.tables.pairs import Source


PAIR_COLUMNS = ("pair_id", "query", "target")
SELECTION_NOTE = "mmemb_r1.selection"  # in the metadata of a table of rationales: how these were selected


def read_pairs(
    path: Source,
    required: Sequence[str] = (),
    *,
    columns: ColumnMap | None = None,
    unless_ours: bool = False,
    tasks: Sequence[str] | None = None,
    per_task: int | None = None,
    base: Path | None = None,
) -> Dataset:
    """
    Open a pairs table, in whatever `datasets` reads, see [`~mmemb_r1.tables.pairs.open_pairs`]; a large one is mapped
    into memory.

    Args:
        path: the file, folder, data set of the Hub, or `Dataset`. Columns that `datasets` wrote as pictures are
            decoded when a row is read; others (paths, bytes) are opened by the collator, by the rules of `encode`.
        required: columns to check as `check_pairs` does, for example `PAIR_COLUMNS`. Default: nothing is checked.
        columns, unless_ours: our name -> the table's, and whether a table of ours is read without it, see there.
        tasks: only pairs of these tasks (column `task`) or groups of tasks (column `complexity`). Default: all.
        per_task: only the first so many pairs of each task. Default: all.
        base: where relative paths of pictures and videos start. Default: the folder of the file.

    Raises:
        ValueError: if there is no table, a check fails, or there is no such task.
    """
    pairs = open_pairs(path, columns, None if base is None else Path(base), unless_ours)
    name = str(path) if isinstance(path, str | os.PathLike) else table_name(path)
    if required:
        check_pairs(pairs, required, name)
    return pairs if tasks is None and per_task is None else _some_pairs(pairs, tasks, per_task, name)


def read_selection_note(path: Path) -> str | None:
    """Read how rationales of a Parquet table were selected, as `mmemb-r1 select` noted it; `None` if nobody did."""
    import pyarrow.parquet

    file = table_files(path)[0]
    found = (pyarrow.parquet.read_metadata(file).metadata or {}) if file.suffix not in NOT_PARQUET else {}
    note = found.get(SELECTION_NOTE.encode())
    return None if note is None else note.decode()


def _some_pairs(pairs: Dataset, tasks: Sequence[str] | None, per_task: int | None, name: str) -> Dataset:
    from mmemb_r1.evaluation.tasks import rows_by, task_names

    if per_task is not None and per_task < 1:
        raise ValueError(f"per_task is {per_task}; allowed: 1 or more.")
    if "task" not in pairs.column_names:
        raise ValueError(f"{name} has no column 'task' by which pairs could be chosen; read all of them.")
    rows = rows_by(plain_column(pairs, "task"))
    if tasks is not None:
        groups = plain_column(pairs, "complexity" if "complexity" in pairs.column_names else "task")
        rows = {
            task: rows[task] for task in task_names({task: {"": groups[own[0]]} for task, own in rows.items()}, tasks)
        }
    return pairs.select(sorted(row for own in rows.values() for row in own[:per_task]))


def check_pairs(pairs: Dataset, required: Sequence[str], name: str = "the pairs table") -> None:
    """
    Check that a pairs table has rows and some columns, and that these are filled. No picture is decoded for it.

    `pair_id` has to be text that is there once per row; any other column an input (an object with the keys `text`,
    `image`, `video`, `instruction`; `read_pairs` makes one of a text) with a text that is not blank, an image or a
    video in each row. The `ValueError` names the table, the column, and the row (counted from 0) and its `pair_id`.
    """
    missing = [column for column in required if column not in pairs.column_names]
    if missing := sorted(missing, key=lambda column: column == "pair_id"):  # where there is a query, ids are made
        raise ValueError(
            f"{name} has no column {missing[0]!r}; needed: {', '.join(required)}. It has: "
            f"{', '.join(pairs.column_names) or 'none'}." + columns_hint(pairs.column_names)
        )
    if len(pairs) == 0:
        raise ValueError(f"{name} has no rows; give it at least one pair.")
    for column in required:
        if column == "pair_id":
            _check_ids(pairs, name)
        else:
            _check_inputs(pairs, column, name)


def stored_batches(table: Dataset, column: str) -> Iterator[pyarrow.ChunkedArray]:
    """Yield a column as it is stored, `ROWS_AT_ONCE` rows at a time; pictures stay undecoded."""
    for batch in table.select_columns([column]).with_format("arrow").iter(ROWS_AT_ONCE):
        yield batch[column]


def _check_ids(pairs: Dataset, name: str) -> None:
    row, digests = 0, []
    for batch in stored_batches(pairs, "pair_id"):
        ids = batch.to_pylist()
        for pair_id in ids:
            if not isinstance(pair_id, str) or not pair_id:
                raise ValueError(f"{name}: the pair_id of row {row} is {pair_id!r}; allowed: text that is not empty.")
            row += 1
        digests.append(text_numbers(ids))
    numbers = number_rows(np.concatenate(digests))
    _, first = np.unique(numbers, return_index=True)  # (U,)
    if len(first) < len(numbers):
        again = np.ones(len(numbers), dtype=bool)
        again[first] = False
        row = int(again.argmax())
        before = int(first[numbers[row]])
        raise ValueError(
            f"{name}: the pair_id {pairs.select_columns(['pair_id'])[row]['pair_id']!r} is there twice, in the rows "
            f"{before} and {row}; give each pair its own."
        )


def _check_inputs(pairs: Dataset, column: str, name: str) -> None:
    import pyarrow
    import pyarrow.compute

    start = 0
    for values in stored_batches(pairs, column):
        if not start:
            keys = _input_keys(values.type, column, name)
        given = np.zeros(len(values), dtype=bool)
        for key in keys:
            if key != "instruction":
                given |= _is_given(pyarrow.compute.struct_field(values, key)).to_numpy()
        if not given.all():
            row = start + int(given.argmin())
            pair = ""
            if "pair_id" in pairs.column_names:
                pair = f" (pair_id {pairs.select_columns(['pair_id'])[row]['pair_id']!r})"
            raise ValueError(
                f"{name}: row {row}{pair}, counted from 0, has no {column}; give it a text, an image or a video, or "
                "leave the row out."
            )
        start += len(values)


def _input_keys(kind: pyarrow.DataType, column: str, name: str) -> list[str]:
    """Check the type of a column of inputs, and list the keys that they have."""
    import pyarrow

    allowed = f"an object with any of the keys {', '.join(PARTS)}"
    if not pyarrow.types.is_struct(kind) and not pyarrow.types.is_null(kind):
        raise ValueError(
            f"{name}: the column {column!r} holds {kind}; allowed: {allowed}. `read_pairs` makes one of each text and "
            "picture."
        )
    keys = [field.name for field in kind] if pyarrow.types.is_struct(kind) else []
    if unknown := [key for key in keys if key not in PARTS]:  # it might give away what a worker must not see
        raise ValueError(f"{name}: the inputs of {column!r} have the unknown key {unknown[0]!r}; allowed: {allowed}.")
    return keys


def _is_given(part: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Find where one part of an input `(N,)` holds something."""
    import pyarrow
    import pyarrow.compute as compute

    kind = part.type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        there = compute.not_equal(compute.utf8_trim_whitespace(part), "")
    elif pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        there = compute.greater(compute.list_value_length(part), 0)
    else:
        there = compute.is_valid(part)
    return compute.fill_null(there, False)


def stored_column(table: Dataset, column: str) -> pyarrow.ChunkedArray:
    """Return a column as it is stored: pictures stay undecoded."""
    return table.select_columns([column]).with_format("arrow")[:][column]


def plain_column(table: Dataset, column: str) -> list[Any]:
    """
    Read a column of texts or numbers as a list.

    All of it at once: `datasets` reads row by row where a column is looped over, a minute for a million rows.
    """
    return stored_column(table, column).to_pylist()


def tasks_of(table: Dataset) -> list[str]:
    """List the task of each row; the empty name where a table, or a row, has none. Each name is held once."""
    if "task" not in table.column_names:
        return [""] * len(table)
    return [intern(task or "") for batch in stored_batches(table, "task") for task in batch.to_pylist()]


class StoredValues(Sequence[Any]):
    """Read the values of a column as they are stored, one when it is asked for; pictures stay undecoded."""

    def __init__(self, table: Dataset, column: str) -> None:
        self._table, self._column = table.select_columns([column]).with_format("arrow"), column

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[place] for place in range(*row.indices(len(self)))]
        place = row if row >= 0 else row + len(self)
        if not 0 <= place < len(self):
            raise IndexError(f"there is no row {row} in a table of {len(self)}")
        (value,) = self._table[place : place + 1][self._column].to_pylist()
        return self._read(value)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches():
            yield from map(self._read, batch.to_pylist())

    def batches(self) -> Iterator[pyarrow.ChunkedArray]:
        """Yield the column some rows at a time."""
        return stored_batches(self._table, self._column)

    def _read(self, value: Any) -> Any:
        return value


class StoredInputs(StoredValues):
    """
    Read the inputs of a column that `check_pairs` passed, each as a dict of the parts that are there, when asked for.

    Pictures stay as they are stored: a path, or `{"bytes", "path"}`, without the path where there are bytes: a name is
    no part of the input, and may give away the label.
    """

    def _read(self, value: Any) -> dict[str, Any]:
        return stored_input(value)


def stored_input(value: Mapping[str, Any]) -> dict[str, Any]:
    """Take an input as a table stores it: the parts that are there, without names of files whose bytes are there."""
    return given_parts(_nameless(value))


def _nameless(value: Any) -> Any:
    """
    >>> _nameless({"image": [{"bytes": b"...", "path": "tench.png"}, {"bytes": None, "path": "a.png"}]})
    {'image': [{'bytes': b'...', 'path': None}, {'bytes': None, 'path': 'a.png'}]}
    """
    if isinstance(value, list):
        return [_nameless(item) for item in value]
    if isinstance(value, dict):
        nameless = {"path": None} if value.get("bytes") else {}
        return {**{key: _nameless(item) for key, item in value.items()}, **nameless}
    return value


def positions_in(column: pyarrow.ChunkedArray, values: Any) -> npt.NDArray[np.int64]:
    """Find each entry of a column in `values`, texts in any form: `(N,)` its position, -1 where it is missing."""
    import pyarrow
    import pyarrow.compute

    if isinstance(values, StoredValues):
        chunks = [chunk.cast(column.type) for batch in values.batches() for chunk in batch.chunks]
        known = pyarrow.concat_arrays(chunks) if chunks else pyarrow.array([], column.type)
    else:
        known = pyarrow.array(list(values), type=column.type)
    found = pyarrow.compute.index_in(column, value_set=known)
    return pyarrow.compute.fill_null(found, -1).to_numpy().astype(np.int64)


def number_distinct(keys: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Number keys, equal ones alike; also return where each number came first.

    >>> number_distinct(["x", "y", "x"])
    ([0, 1, 0], [0, 1])
    """
    first: dict[Any, int] = {}
    for place, key in enumerate(keys):
        first.setdefault(key, place)
    number = {key: code for code, key in enumerate(first)}
    return [number[key] for key in keys], list(first.values())


def as_numbers(digests: Iterable[bytes]) -> npt.NDArray[np.uint64]:
    """
    Keep digests of at least 16 bytes as `(N, 2)` numbers: a tenth of the memory that objects take.

    >>> as_numbers([bytes(15) + b"\\1", bytes(16)]).tolist()
    [[0, 72057594037927936], [0, 0]]
    """
    return np.frombuffer(b"".join(digest[:16] for digest in digests), dtype="<u8").reshape(-1, 2).astype(np.uint64)


def text_numbers(texts: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Digest texts as `(N, 2)` numbers: 16 bytes each, however long they are."""
    return as_numbers(blake2b(text.encode(), digest_size=16).digest() for text in texts)


def number_rows(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """
    Number the rows of `(N, 2)` keys in the order in which they come, equal ones alike: `(N,)`.

    >>> number_rows(np.array([[7, 7], [5, 5], [7, 7], [7, 8]], np.uint64)).tolist()
    [0, 1, 0, 2]
    """
    if not len(keys):
        return np.zeros(0, dtype=np.int64)
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: equal ones stay in their order
    ordered = keys[order]
    begins = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
    group = begins.cumsum() - 1  # (N,)
    rank = np.empty(group[-1] + 1, dtype=np.int64)  # (U,) by where each came first
    rank[np.argsort(order[begins], kind="stable")] = np.arange(len(rank))
    numbers = np.empty(len(keys), dtype=np.int64)
    numbers[order] = rank[group]
    return numbers
