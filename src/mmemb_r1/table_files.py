"""Open tables in files as memory-mapped data sets, whatever their size: Parquet, JSON lines, and folders of these."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b, file_digest, sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.file_formats import reading_parquet
from mmemb_r1.runs import replaced_file
from mmemb_r1.table_paths import table_paths_from

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

SUFFIXES = (".parquet", ".jsonl")
IN_MEMORY = 2**24  # bytes; a smaller table is not written anew to be mapped
ROWS_AT_ONCE = 256
HINT = "Give a table, see docs/training.md."
_VERSION = 1  # goes up when the same files give another table


def table_files(path: Path) -> list[Path]:
    """
    List the files of a table, in their order: the file itself, or the Parquet files, else the JSON lines, of a folder.

    Raises:
        ValueError: if there are none.
    """
    if not path.is_dir():
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file or folder.")
        return [path]
    for suffix in SUFFIXES:
        if files := sorted(path.glob(f"*{suffix}")):
            return files
    raise ValueError(f"{path} holds no table; needed: files that end in {' or '.join(SUFFIXES)}.")


def has_table(path: Path) -> bool:
    """Tell whether a path is a file, or a folder that holds files of a table."""
    return path.is_file() or any(file.suffix in SUFFIXES for file in path.glob("*"))


def table_digest(path: Path) -> str:
    """
    Digest the content of a table's files: 64 hexadecimal digits. SHA-256 of one file, as `sha256sum` prints it; of
    several, of their digests, one on a line.
    """
    digests = []
    for file in table_files(path):
        status = file.stat()
        digests.append(_file_digest(file.absolute(), status.st_size, status.st_mtime_ns))
    return digests[0] if len(digests) == 1 else sha256("\n".join(digests).encode()).hexdigest()


@cache
def _file_digest(file: Path, size: int, changed: int) -> str:
    """Digest a file, a little at a time, and not again while it stays as it is."""
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def open_table(files: Sequence[Path], base: Path | None = None) -> Dataset:
    """
    Open the files of a table, one after another, as one data set.

    A table of more than `IN_MEMORY` bytes is written once, as Arrow, to the cache (`HF_HOME/mmemb-r1/tables`) and
    mapped from there: it takes the memory of the rows that are read. Pictures stay as they are stored.

    Args:
        files: of one kind, with the same columns.
        base: where relative paths of pictures and videos start. Default: in the folder of each file.

    Raises:
        ValueError: naming the file, if one is no table, or they don't go together.
    """
    import pyarrow
    from datasets import Dataset
    from filelock import FileLock
    from huggingface_hub.constants import HF_HOME

    if sum(map(_size, files)) <= IN_MEMORY:
        return Dataset(pyarrow.Table.from_batches(_batches(files, base, schema := _schema(files)), schema))
    facts = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = blake2b(json.dumps([_VERSION, str(base), facts]).encode(), digest_size=16).hexdigest()
    cached = Path(HF_HOME) / "mmemb-r1" / "tables" / f"{key}.arrow"
    cached.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cached.with_suffix(".lock")):  # the processes of a run come at the same time
        if not cached.exists():
            with replaced_file(cached) as temporary, pyarrow.OSFile(str(temporary), "wb") as sink:
                with pyarrow.ipc.new_stream(sink, schema := _schema(files)) as writer:
                    for batch in _batches(files, base, schema):
                        writer.write_batch(batch)
    return Dataset.from_file(str(cached))


def _size(file: Path) -> int:
    """Count the bytes of a file's rows in memory, about."""
    import pyarrow.parquet

    if file.suffix == ".jsonl":
        return file.stat().st_size
    with reading_parquet(file, HINT):
        metadata = pyarrow.parquet.read_metadata(file)
    return sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))


@contextmanager
def _reading_lines(file: Path) -> Iterator[None]:
    """Turn what is wrong with JSON lines into a `ValueError` that names the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, ValueError) as error:  # ValueError: no JSON, or no UTF-8
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{file} can't be read: its lines are no JSON objects of one form ({reason:.200}). {HINT}"
        ) from error


def _schema(files: Sequence[Path]) -> pyarrow.Schema:
    """Find the columns of all files: those of the first Parquet file, or all of JSON lines."""
    import pyarrow
    import pyarrow.parquet

    if files[0].suffix != ".jsonl":
        with reading_parquet(files[0], HINT):
            return pyarrow.parquet.read_schema(files[0])
    schema = pyarrow.schema([])
    for file in files:
        for rows in _lines(file):
            with _reading_lines(file):
                found = pyarrow.schema(list(pyarrow.array(rows).type))  # of the keys of all rows
                schema = pyarrow.unify_schemas([schema, found], promote_options="permissive")
    return schema


def _batches(files: Sequence[Path], base: Path | None, schema: pyarrow.Schema) -> Iterator[pyarrow.RecordBatch]:
    """Read the rows of all files, some at a time, with paths that start from their folder."""
    import pyarrow

    for file in files:
        folder = file.parent.absolute() if base is None else base
        stored = _stored_lines(file, schema) if file.suffix == ".jsonl" else _stored_rows(file, schema)
        for batch in stored:
            yield from table_paths_from(folder, pyarrow.Table.from_batches([batch])).to_batches()


def _stored_lines(file: Path, schema: pyarrow.Schema) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    for rows in _lines(file):
        with _reading_lines(file):
            batch = pyarrow.RecordBatch.from_pylist(rows, schema)
        yield batch


def _stored_rows(file: Path, schema: pyarrow.Schema) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow.parquet

    with reading_parquet(file, HINT):
        # by default all groups of rows are read ahead, and kept until the end
        stored = pyarrow.parquet.ParquetFile(file, pre_buffer=False, memory_map=True)
        batches = stored.iter_batches(ROWS_AT_ONCE)
    if missing := sorted(set(schema.names) - set(stored.schema_arrow.names)):
        raise ValueError(
            f"{file} has no column {missing[0]!r}, which the table's first file has. All files of a table need the "
            "same columns."
        )
    while True:
        with reading_parquet(file, HINT):
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)  # damaged offsets would end the process later, or give other rows
            batch = batch.select(schema.names)
            if not batch.schema.equals(schema):
                batch = batch.cast(schema)
        yield batch


def _lines(file: Path) -> Iterator[list[dict[str, Any]]]:
    """Read the objects of JSON lines, some at a time."""
    with file.open(encoding="utf-8") as stream:
        while True:
            with _reading_lines(file):
                lines = list(islice(stream, ROWS_AT_ONCE))
                rows = [json.loads(line) for line in lines if line.strip()]
                if other := [row for row in rows if not isinstance(row, dict)]:
                    raise ValueError(f"one of them is {other[0]!r:.80}")
            if not lines:
                return
            if rows:
                yield rows
