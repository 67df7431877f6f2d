"""Open the files of tables as memory-mapped data sets, whatever their size, and digest them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import cache
from hashlib import blake2b, file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from mmemb_r1.file_formats import reading_parquet
from mmemb_r1.progress import progress_bar, step_of
from mmemb_r1.runs import replaced_file
from mmemb_r1.tables.paths import table_paths_from
from mmemb_r1.tables.rows import HINT, NOT_PARQUET, columns_of_files, rows_of_file

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset


SUFFIXES = (".parquet", ".jsonl", ".csv")  # of the files of a folder; one kind alone, the first that is there
OF_A_FILE = (*SUFFIXES, ".json")
PICTURES = tuple(f"metadata{suffix}" for suffix in (".csv", ".jsonl", ".parquet"))  # of a folder of pictures
SAVED, SPLITS = "state.json", "dataset_dict.json"  # in what `datasets` wrote by `save_to_disk`
IN_MEMORY = 2**24  # bytes; a smaller table is not written anew to be mapped
_VERSION = 2  # goes up when the same files give another table


class Form(Protocol):
    """Turn the rows of a table into others, the same ones each time; `key` tells which, for the cache."""

    key: str

    def schema(self, stored: pyarrow.Schema) -> pyarrow.Schema:
        """Tell the columns that rows with these columns get."""
        ...

    def reader(self) -> Callable[[pyarrow.Table], pyarrow.Table]:
        """Begin a table: what is returned is called with its rows, some at a time, in their order."""
        ...


def table_files(path: Path) -> list[Path]:
    """
    List the files of a table, in their order.

    They are the file itself; of a folder that `save_to_disk` of `datasets` wrote, its Arrow files; of one with
    pictures, its `metadata.csv`, `.jsonl` or `.parquet`; of any other, its Parquet files, else JSON lines, else CSV.

    Raises:
        ValueError: if there are none.
    """
    if not path.is_dir():
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file or folder.")
        return [path]
    if (path / SPLITS).is_file():
        splits = _saved(path / SPLITS, lambda content: list(content["splits"]))
        raise ValueError(f"{path} holds several tables; say which: {', '.join(str(path / name) for name in splits)}.")
    if (path / SAVED).is_file():
        return _saved(path / SAVED, lambda content: [path / file["filename"] for file in content["_data_files"]])
    if pictures := [path / name for name in PICTURES if (path / name).is_file()]:
        return pictures[:1]
    for suffix in SUFFIXES:
        if files := sorted(path.glob(f"*{suffix}")):
            return files
    raise ValueError(
        f"{path} holds no table; needed: files that end in {' or '.join(SUFFIXES)}, among them, of pictures, "
        f"{' or '.join(PICTURES)} with the column file_name."
    )


def _saved(file: Path, read: Callable[[Any], list[Any]]) -> list[Any]:
    """Read a list in a JSON file that `save_to_disk` wrote."""
    try:
        found = read(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged, or not of `save_to_disk` of `datasets` ({error!r:.200}). Save the data set again."
        ) from error
    if not found:
        raise ValueError(f"{file} names no files. Save the data set again.")
    return found


def has_table(path: Path) -> bool:
    """Tell whether a path is a file, or a folder that holds files of a table."""
    return path.is_file() or any(file.suffix in SUFFIXES or file.name in (SAVED, SPLITS) for file in path.glob("*"))


def files_digest(files: Sequence[Path]) -> str:
    """
    Digest the content of files: 64 hexadecimal digits. SHA-256 of one file, as `sha256sum` prints it; of several, of
    their digests, one on a line.
    """
    digests = []
    for file in files:
        status = file.stat()
        digests.append(_file_digest(file.absolute(), status.st_size, status.st_mtime_ns))
    return digests[0] if len(digests) == 1 else sha256("\n".join(digests).encode()).hexdigest()


@cache
def _file_digest(file: Path, size: int, changed: int) -> str:
    """Digest a file, a little at a time, and not again while it stays as it is."""
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def open_table(files: Sequence[Path], base: Path | None = None, form: Form | None = None) -> Dataset:
    """
    Open the files of a table, one after another, as one data set.

    A table of more than `IN_MEMORY` bytes is written once, as Arrow, to the cache (`HF_HOME/mmemb-r1/tables`) and
    mapped from there: it takes the memory of the rows that are read. Pictures stay as they are stored.

    Args:
        files: of one kind, with the same columns.
        base: where relative paths of pictures and videos start. Default: in the folder of each file.
        form: turns the rows into others. Default: they stay as they are stored.

    Raises:
        ValueError: naming the file, if one is no table, or they don't go together.
    """
    from datasets import Dataset

    stored = columns_of_files(files)
    schema = stored if form is None else form.schema(stored)
    if sum(map(_size, files)) <= IN_MEMORY:
        import pyarrow

        return Dataset(pyarrow.Table.from_batches(_batches(files, base, stored, form), schema))
    facts = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = [_VERSION, str(base), facts, *([] if form is None else [form.key])]
    return mapped(key, schema, lambda: _batches(files, base, stored, form))


def mapped(
    key: Sequence[Any] | None, schema: pyarrow.Schema, batches: Callable[[], Iterator[pyarrow.RecordBatch]]
) -> Dataset:
    """
    Map the rows that are kept in the cache under a key; where there are none, they are written there first. Without a
    key they are written in any case, and kept by what they are.
    """
    import pyarrow
    from datasets import Dataset
    from filelock import FileLock
    from huggingface_hub.constants import HF_HOME

    name = uuid4().hex if key is None else blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()
    cached = Path(HF_HOME) / "mmemb-r1" / "tables" / f"{name}.arrow"
    cached.parent.mkdir(parents=True, exist_ok=True)
    # the processes of a run come at the same time
    with nullcontext() if key is None else FileLock(cached.with_suffix(".lock")):
        if not cached.exists():
            with replaced_file(cached) as temporary, pyarrow.OSFile(str(temporary), "wb") as sink:
                with pyarrow.ipc.new_stream(sink, schema) as writer, progress_bar() as bar:
                    with step_of(bar, "rows of a table, written to the cache", None) as tick:
                        for batch in batches():
                            writer.write_batch(batch)
                            tick(len(batch))
    if key is None:
        cached = cached.replace(cached.with_name(f"{files_digest([cached])}.arrow"))
    return Dataset.from_file(str(cached))


def _size(file: Path) -> int:
    """Count the bytes of a file's rows in memory, about."""
    import pyarrow.parquet

    if file.suffix in NOT_PARQUET:
        return file.stat().st_size
    with reading_parquet(file, HINT):
        metadata = pyarrow.parquet.read_metadata(file)
    return sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))


def _batches(
    files: Sequence[Path], base: Path | None, schema: pyarrow.Schema, form: Form | None
) -> Iterator[pyarrow.RecordBatch]:
    """Read the rows of all files, some at a time, in their form, with paths that start from their folder."""
    import pyarrow

    formed = (lambda rows: rows) if form is None else form.reader()
    for file in files:
        folder = file.parent.absolute() if base is None else base
        for batch in rows_of_file(file, schema):
            yield from table_paths_from(folder, formed(pyarrow.Table.from_batches([batch]))).to_batches()
