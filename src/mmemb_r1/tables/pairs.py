"""Open the pairs that people have, in whatever `datasets` reads: files, folders, data sets of the Hub or in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from mmemb_r1.content import stored_digest
from mmemb_r1.tables.columns import ColumnError, ColumnMap, PairForm
from mmemb_r1.tables.files import IN_MEMORY, OF_A_FILE, PICTURES, Form, files_digest, mapped, open_table, table_files
from mmemb_r1.tables.paths import table_paths_from
from mmemb_r1.tables.rows import ROWS_AT_ONCE, with_columns_of

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset, IterableDataset

    Source: TypeAlias = str | os.PathLike[str] | Dataset | IterableDataset


# owner/name, after @ a revision, after : a config, after / a split
HUB_TABLE = re.compile(
    r"(?P<id>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?::(?P<config>[\w.-]+)(?:/(?P<split>[\w.-]+))?)?"
)
HUB_FORM = "owner/name, owner/name:config/split or owner/name@revision:config/split"


class HubTable(NamedTuple):
    """Hold a table of the Hub: the Arrow files that `datasets` made of it, and what it is, with its commit."""

    files: tuple[Path, ...]
    name: str


def is_hub_table(source: Source) -> bool:
    """
    Tell whether a table is one of the Hub: it has the form of one, and is plainly no path.

    >>> is_hub_table("owner/name:default/train"), is_hub_table("owner/pairs.csv"), is_hub_table("pairs.parquet")
    (True, False, False)
    """
    if not isinstance(source, str | os.PathLike) or os.path.exists(source):
        return False
    match = HUB_TABLE.fullmatch(os.fspath(source))
    if match is None or match["id"].endswith(OF_A_FILE):
        return False
    return bool(match["config"] or match["revision"]) or not Path(match["id"]).parent.is_dir()


def open_pairs(
    source: Source, columns: ColumnMap | None = None, base: Path | None = None, unless_ours: bool = False
) -> Dataset:
    """
    Open a table of pairs, with our columns.

    Args:
        source: a file (Parquet, JSON lines, JSON, CSV); a folder of such files, of pictures with their metadata, or
            one that `save_to_disk` wrote; a data set of the Hub (`HUB_FORM`), which `datasets` downloads, with the
            token of the environment; or a `Dataset` or `IterableDataset`. What is larger than `IN_MEMORY` is mapped
            from the cache, see [`~mmemb_r1.tables.files.open_table`].
        columns: our name -> theirs, see [`~mmemb_r1.tables.columns.PairForm`], which also says what texts and pictures
            become and how ids are made. Default: columns have our names.
        base: where relative paths of pictures and videos start. Default: the folder of each file; of the Hub and of
            data sets in memory, the current folder.
        unless_ours: whether a table that has `query`, and no column that `columns` names, is read without these: it is
            read beside the one that they are of.

    Raises:
        ValueError: naming the table, if it is none, or lacks a column of `columns`.
    """
    form = PairForm(columns, unless_ours)
    try:
        if not isinstance(source, str | os.PathLike):
            return _open_dataset(source, form, base)
        if is_hub_table(source):
            return open_table(hub_table(os.fspath(source)).files, base or Path(), form)
        files = table_files(Path(source))
        if Path(source).is_dir() and files[0].name in PICTURES:
            form = PairForm(columns, unless_ours, of_pictures=True)
        return open_table(files, base, form)
    except ColumnError as error:
        raise ValueError(f"{table_name(source)}: {error}") from error


def table_digest(source: Source) -> str:
    """
    Digest the content of a table as it is stored: 64 hexadecimal digits. Of files it is their
    [`~mmemb_r1.tables.files.files_digest`], of a table of the Hub that of its id, commit, config and split, of a
    `Dataset` that of its rows. An `IterableDataset` is a `ValueError`.
    """
    if not isinstance(source, str | os.PathLike):
        if not hasattr(source, "data"):
            raise ValueError("a stream can't be told from another before it is read; give what read_pairs makes of it")
        digest = sha256()
        for batch in source.with_format("arrow").iter(ROWS_AT_ONCE):
            for row in batch.to_pylist():
                digest.update(stored_digest(row))
        return digest.hexdigest()
    if is_hub_table(source):
        return sha256(hub_table(os.fspath(source)).name.encode()).hexdigest()
    return files_digest(table_files(Path(source)))


def table_name(source: Source) -> str:
    """Name a table without the folder that it is in; one of the Hub with its commit."""
    if not isinstance(source, str | os.PathLike):
        return f"a {type(source).__name__}"
    return hub_table(os.fspath(source)).name if is_hub_table(source) else Path(source).name


@cache
def hub_table(source: str) -> HubTable:
    """
    Let `datasets` download a table of the Hub, or find it in its cache.

    Raises:
        ValueError: if there is none of this name, or it has several configs or splits and none is named.
    """
    import datasets

    match = HUB_TABLE.fullmatch(source)
    if match is None:
        raise ValueError(f"{source} names no table of the Hub; allowed: {HUB_FORM}")
    try:
        builder = datasets.load_dataset_builder(match["id"], match["config"], revision=match["revision"])
        builder.download_and_prepare()
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:  # it names the configs that there are
        raise ValueError(
            f"{source}: there is no such file or folder, and as a table of the Hub ({HUB_FORM}) it can't be read: "
            f"{' '.join(str(error).split())}"
        ) from error
    splits = list(builder.info.splits or ())
    split = match["split"] or splits[0]
    if split not in splits or (match["split"] is None and len(splits) > 1):
        config = match["config"] or builder.config.name
        start = source.partition(":")[0]
        raise ValueError(f"{source}: say which split: {', '.join(f'{start}:{config}/{one}' for one in splits)}")
    files = tuple(Path(file["filename"]) for file in builder.as_dataset(split).cache_files)
    return HubTable(files, f"{match['id']}@{builder.hash}:{builder.config.name}/{split}")


def _open_dataset(table: Any, form: Form, base: Path | None) -> Dataset:
    """Open what `datasets` has opened. A stream is written to the cache, as is what is large and not of our form."""
    import pyarrow
    from datasets import Dataset

    streams = not isinstance(table, Dataset)
    stored = _columns_of_stream(table) if table.features is None else table.features.arrow_schema
    schema = form.schema(stored)
    if not streams and schema.equals(stored) and base is None:
        return table

    def batches() -> Iterator[pyarrow.RecordBatch]:
        formed: Callable[[pyarrow.Table], pyarrow.Table] = form.reader()
        for rows in _rows_of_stream(table, stored) if table.features is None else _arrow_rows(table):
            yield from table_paths_from(base or Path(), formed(rows.cast(stored))).to_batches()

    if not streams and table.data.nbytes <= IN_MEMORY:
        return Dataset(pyarrow.Table.from_batches(batches(), schema))
    # what a stream will yield is not known before
    return mapped(None if streams else [table._fingerprint, str(base), form.key], schema, batches)


def _arrow_rows(table: Any) -> Iterator[pyarrow.Table]:
    return table.with_format("arrow").iter(ROWS_AT_ONCE)


def _columns_of_stream(table: Any) -> pyarrow.Schema:
    """Find the columns of a stream that does not say them: it is read once for that, as JSON lines are."""
    import pyarrow

    schema = pyarrow.schema([])
    for rows in _parts(table):
        try:
            schema = with_columns_of(schema, rows)
        except pyarrow.ArrowException as error:
            raise ValueError(
                f"the stream does not say what its columns hold, and its rows don't tell ({error}); give it features"
            ) from error
    return schema


def _rows_of_stream(table: Any, schema: pyarrow.Schema) -> Iterator[pyarrow.Table]:
    import pyarrow

    return (pyarrow.Table.from_pylist(rows, schema=schema) for rows in _parts(table))


def _parts(table: Any) -> Iterator[list[dict[str, Any]]]:
    rows = iter(table)
    while part := list(islice(rows, ROWS_AT_ONCE)):
        yield part
