"""Keep the rows of an index in a table of LanceDB: written in batches, each whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow
    from lancedb.table import Table

NAME = "items"
APPROXIMATE_FROM = 100_000  # rows; below, an exact search takes some tens of milliseconds
IDS_AT_ONCE = 500  # in one condition
KEPT = timedelta(hours=1)  # old versions, which a search that runs at the same time may read
# what vectors are stored as for an approximate search: LanceDB's kind of index, and how many times k of them are
# scored again in full precision; recall of each: docs/search.md
PRECISIONS = {"float32": ("IvfFlat", 1), "int8": ("IvfSq", 4), "binary": ("IvfRq", 20)}


class Stored(NamedTuple):
    """What tells whether an item changed: the digests of its content, and of all else that is kept of it."""

    content: bytes
    facts: bytes


def database() -> Any:
    """Import LanceDB."""
    try:
        import lancedb
    except ImportError as error:
        raise ImportError("an index needs LanceDB: pip install 'mmemb-r1[search]'") from error
    return lancedb


def open_rows(directory: Path) -> Table | None:
    """Open the table of an index, always at its newest version; `None` if nothing was written yet."""
    folder = directory / f"{NAME}.lance"
    if not any((folder / "_versions").glob("*.manifest")):  # what a killed process began is no table
        return None
    return database().connect(directory, read_consistency_interval=timedelta(0)).open_table(NAME)


def create_rows(directory: Path, dim: int, metadata: pyarrow.StructType | None) -> Table:
    """Make an empty table for vectors of `dim` dimensions, in the place of one that a killed process began."""
    shutil.rmtree(directory / f"{NAME}.lance", ignore_errors=True)
    database().connect(directory).create_table(NAME, schema=_schema(dim, metadata))
    table = open_rows(directory)
    if table is None:
        raise OSError(f"LanceDB made no table in {directory}")
    return table


def _schema(dim: int, metadata: pyarrow.StructType | None) -> pyarrow.Schema:
    import pyarrow

    fields: list[Any] = [
        *((name, pyarrow.string()) for name in ("id", "kind", "path", "text", "words", "rationale")),
        ("page", pyarrow.int32()),
        ("gate_prob", pyarrow.float32()),
        ("reasoned", pyarrow.bool_()),
        *((name, pyarrow.binary()) for name in (*Stored._fields, "thumbnail")),
        ("vector", pyarrow.list_(pyarrow.float32(), dim)),
        *([] if metadata is None else [("metadata", metadata)]),
    ]
    return pyarrow.schema(fields)


def stored_items(table: Table) -> dict[str, Stored]:
    """Read what is in the table: id -> its digests."""
    found = table.search().select(["id", *Stored._fields]).limit(table.count_rows() or 1).to_arrow()
    names, *digests = (found.column(name).to_pylist() for name in ("id", *Stored._fields))
    return {name: Stored(*pair) for name, pair in zip(names, zip(*digests, strict=True), strict=True)}


def rows_of_ids(table: Table, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Read whole rows: id -> row."""
    found: dict[str, dict[str, Any]] = {}
    for part in _parts(ids):
        rows = table.search().where(_one_of(part)).limit(len(part)).to_arrow().to_pylist()
        found |= {row["id"]: row for row in rows}
    return found


def write_rows(table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows in one step; those whose ids are there take their place."""
    import pyarrow

    batch = pyarrow.Table.from_pylist(list(rows), schema=table.schema)
    table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(batch)


def delete_rows(table: Table, ids: Iterable[str]) -> None:
    for part in _parts(ids):
        table.delete(_one_of(part))


def _parts(ids: Iterable[str]) -> Iterator[list[str]]:
    left = iter(ids)
    while part := list(islice(left, IDS_AT_ONCE)):
        yield part


def _one_of(ids: Sequence[str]) -> str:
    """
    Write the condition that an id is one of these.

    >>> _one_of(["a", "it's"])
    "id IN ('a', 'it''s')"
    """
    quoted = ("'" + name.replace("'", "''") + "'" for name in ids)
    return f"id IN ({', '.join(quoted)})"


def tidy(table: Table) -> None:
    """Join small files, bring the indexes up to date, and remove old versions."""
    table.optimize(cleanup_older_than=KEPT)


def index_words(table: Table) -> None:
    """Make the full-text index over the column `words`, if it is missing."""
    from lancedb.index import FTS

    if index_of(table, "words") is None and table.count_rows():
        table.create_index("words", config=FTS())


def index_vectors(table: Table, precision: str) -> None:
    """Make the index for approximate search, of vectors in a precision of `PRECISIONS`."""
    import lancedb.index

    kind = PRECISIONS[precision][0]
    if index_of(table, "vector") != kind:
        table.create_index("vector", config=getattr(lancedb.index, kind)(distance_type="cosine"))


def index_of(table: Table, column: str) -> str | None:
    """Tell the kind of the index of a column; `None` if it has none."""
    return next((one.index_type for one in table.list_indices() if one.columns == [column]), None)


SHOWN = ("id", "kind", "path", "page", "text", "thumbnail", "vector")


def nearest_rows(
    table: Table, vector: npt.NDArray[np.float32], k: int, condition: str | None, exact: bool
) -> pyarrow.Table:
    """
    Find the `k` rows whose vectors have the largest cosine with one `(D,)`.

    Args:
        condition: SQL, of the rows that count.
        exact: whether all vectors are compared. Otherwise the index is asked, if there is one, and what it finds is
            compared in full precision.
    """
    search = table.search(vector, vector_column_name="vector").distance_type("cosine").limit(k)
    kind = index_of(table, "vector")
    if exact or kind is None:
        search = search.bypass_vector_index()
    else:
        search = search.refine_factor(next(factor for name, factor in PRECISIONS.values() if name == kind))
    return _found(table, search, condition, "_distance")


def rows_with_words(table: Table, words: str, k: int, condition: str | None) -> pyarrow.Table:
    """Find the `k` rows whose words score highest (BM25) for those of a text."""
    from lancedb.query import MatchQuery

    return _found(table, table.search(MatchQuery(words, "words"), query_type="fts").limit(k), condition, "_score")


def _found(table: Table, search: Any, condition: str | None, score: str) -> pyarrow.Table:
    columns = [name for name in (*SHOWN, "metadata") if name in table.schema.names]
    named = [name for name in columns if name not in ("thumbnail", "vector", "metadata")]
    if "metadata" in columns:
        named += [f"metadata.{field.name}" for field in table.schema.field("metadata").type]
    with _explained(condition, named):
        return (
            (search if condition is None else search.where(condition, prefilter=True))
            .select([*columns, score])
            .to_arrow()
        )


@contextmanager
def _explained(condition: str | None, columns: Sequence[str]) -> Iterator[None]:
    """Turn what LanceDB says of a condition that it can't read into a `ValueError` with the names."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        if condition is None:
            raise
        raise ValueError(
            f"filter {condition!r} can't be used ({' '.join(str(error).split()):.300}). It is a condition of SQL "
            f"over {', '.join(columns)}, for example: kind = 'page' AND path LIKE 'reports/%'."
        ) from error
