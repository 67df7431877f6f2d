"""Read and check the tables that the stages exchange."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmemb_r1.content import given_parts
from mmemb_r1.file_formats import read_parquet
from mmemb_r1.modeling.inputs_mmemb_r1 import PARTS
from mmemb_r1.table_paths import table_paths_from

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset


PAIR_COLUMNS = ("pair_id", "query", "target")
SELECTION_NOTE = "mmemb_r1.selection"  # in the metadata of a table of rationales: how these were selected


def read_pairs(
    path: Path,
    required: Sequence[str] = (),
    *,
    tasks: Sequence[str] | None = None,
    per_task: int | None = None,
    base: Path | None = None,
) -> Dataset:
    """
    Read a pairs table from a Parquet file into memory.

    Args:
        path: the file. Columns that `datasets` wrote as pictures are decoded when a row is read; others (paths, bytes)
            are opened by the collator, with the same rules as in `encode`.
        required: columns to check as `check_pairs` does, for example `PAIR_COLUMNS`. Default: nothing is checked.
        tasks: only pairs of these tasks (column `task`) or groups of tasks (column `complexity`). Default: all.
        per_task: only the first so many pairs of each task. Default: all.
        base: where relative paths of pictures and videos start. Default: the folder of the file.

    Raises:
        ValueError: if the file holds no table, a check fails, or there is no such task.
    """
    from datasets import Dataset

    table = read_parquet(path, hint="Give a pairs table, see docs/training.md.")
    pairs = Dataset(table_paths_from(Path(path).parent.absolute() if base is None else base, table))
    if required:
        check_pairs(pairs, required, str(path))
    return pairs if tasks is None and per_task is None else _some_pairs(pairs, tasks, per_task, str(path))


def selection_note(path: Path) -> str | None:
    """Read how the rationales of a Parquet file were selected, as `mmemb-r1 select` noted it; `None` if nobody did."""
    import pyarrow.parquet

    found = (pyarrow.parquet.read_metadata(path).metadata or {}).get(SELECTION_NOTE.encode())
    return None if found is None else found.decode()


def _some_pairs(pairs: Dataset, tasks: Sequence[str] | None, per_task: int | None, name: str) -> Dataset:
    import pyarrow
    from datasets import Dataset

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
    kept = {row for own in rows.values() for row in own[:per_task]}
    return Dataset(pairs.data.table.filter(pyarrow.array([row in kept for row in range(len(pairs))])))


def check_pairs(pairs: Dataset, required: Sequence[str], name: str = "the pairs table") -> None:
    """
    Check that a pairs table has rows and some columns, and that these are filled. No picture is decoded for it.

    `pair_id` has to be text that is there once per row; any other column an input (an object with the keys `text`,
    `image`, `video`, `instruction`) with a text that is not blank, an image or a video in each row. The `ValueError`
    names the table, the column, and the row (counted from 0) and its `pair_id`.
    """
    if missing := [column for column in required if column not in pairs.column_names]:
        raise ValueError(
            f"{name} has no column {missing[0]!r}; needed: {', '.join(required)}. It has: "
            f"{', '.join(pairs.column_names) or 'none'}."
        )
    if len(pairs) == 0:
        raise ValueError(f"{name} has no rows; give it at least one pair.")
    ids = stored_column(pairs, "pair_id").to_pylist() if "pair_id" in pairs.column_names else [None] * len(pairs)
    for column in required:
        if column == "pair_id":
            _check_ids(ids, name)
        else:
            _check_inputs(stored_column(pairs, column), ids, column, name)


def _check_ids(ids: Sequence[Any], name: str) -> None:
    first: dict[str, int] = {}
    for row, pair_id in enumerate(ids):
        if not isinstance(pair_id, str) or not pair_id:
            raise ValueError(f"{name}: the pair_id of row {row} is {pair_id!r}; allowed: text that is not empty.")
        if first.setdefault(pair_id, row) != row:
            raise ValueError(
                f"{name}: the pair_id {pair_id!r} is there twice, in the rows {first[pair_id]} and {row}; give each "
                "pair its own."
            )


def _check_inputs(values: pyarrow.ChunkedArray, ids: Sequence[Any], column: str, name: str) -> None:
    import pyarrow
    import pyarrow.compute

    allowed = f"an object with any of the keys {', '.join(PARTS)}"
    kind = values.type
    if not pyarrow.types.is_struct(kind) and not pyarrow.types.is_null(kind):
        raise ValueError(f"{name}: the column {column!r} holds {kind}; allowed: {allowed}.")
    keys = [field.name for field in kind] if pyarrow.types.is_struct(kind) else []
    if unknown := [key for key in keys if key not in PARTS]:  # it might give away what a worker must not see
        raise ValueError(f"{name}: the inputs of {column!r} have the unknown key {unknown[0]!r}; allowed: {allowed}.")
    given = [False] * len(values)
    for key in keys:
        if key != "instruction":
            there = _is_given(pyarrow.compute.struct_field(values, key)).to_pylist()
            given = [a or b for a, b in zip(given, there, strict=True)]
    if not all(given):
        row = given.index(False)
        pair = "" if ids[row] is None else f" (pair_id {ids[row]!r})"
        raise ValueError(
            f"{name}: row {row}{pair}, counted from 0, has no {column}; give it a text, an image or a video, or leave "
            "the row out."
        )


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
    """List the task of each row; the empty name where a table, or a row, has none."""
    if "task" not in table.column_names:
        return [""] * len(table)
    return [task or "" for task in plain_column(table, "task")]


class StoredInputs(Sequence[dict[str, Any]]):
    """
    Read the inputs of a column that `check_pairs` passed, each as a dict of the parts that are there, when asked for.

    Pictures stay as they are stored: a path, or `{"bytes", "path"}`, without the path where there are bytes: a name is
    no part of the input, and may give away the label.
    """

    def __init__(self, table: Dataset, column: str) -> None:
        self._values = stored_column(table, column)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[place] for place in range(*row.indices(len(self)))]
        return stored_input(self._values[row].as_py())


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
    """Find each entry of a column in `values`, texts or a column: `(N,)` its position, -1 where it is missing."""
    import pyarrow
    import pyarrow.compute

    if isinstance(values, pyarrow.ChunkedArray):
        known = pyarrow.chunked_array(values.chunks or [[]], type=values.type).cast(column.type).combine_chunks()
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


def stored_digest(value: Any) -> bytes:
    """
    Digest an input as a table stores it, for seeds and to tell whether a table changed; no file is read.

    To compare inputs use [`mmemb_r1.content.content_key`].

    >>> stored_digest({"text": "a", "image": []}) == stored_digest({"text": "a"})
    True
    """
    digest = blake2b(digest_size=16)
    _feed(digest, value)
    return digest.digest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        stored = bool(value.get("bytes"))
        for key in sorted(key for key in value if value[key] not in (None, [], "")):
            if key != "path" or not stored:
                digest.update(f"{{{key}:".encode())
                _feed(digest, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(digest, item)
    else:
        digest.update(value if isinstance(value, bytes) else repr(value).encode())
