"""Read the rows of a source one after another, in constant memory: JSON lists and lines, Parquet, CSV, `datasets`."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.file_formats import reading_parquet
from mmemb_r1.tables.pairs import HUB_FORM, HUB_TABLE, hub_table
from mmemb_r1.tables.rows import columns_of_files, csv_header, json_elements, rows_of_file
from mmemb_r1.training.importing.formats import Format
from mmemb_r1.training.importing.pair import RowError

if TYPE_CHECKING:
    import pyarrow

_SHARD = re.compile(r"(?:train|test|val|validation|data|metadata|original|diverse_instruction)?(?:[-_]?\d+-of-\d+)?")
_ROWS_AT_ONCE = 32  # a page's picture takes half a megabyte
_SAMPLE = 2**20  # bytes
_HINT = "Fetch the file again."
BLANK_LINE: Any = object()


@dataclass(frozen=True)
class Source:
    """
    Name a file whose rows are read.

    Attributes:
        name: within the source, for messages and the record of the run.
        place: the file.
        task: of its rows, where they name none.
        size: in bytes.
        mark: changes where the content does.
    """

    name: str
    place: str
    task: str
    size: int
    mark: str


def list_sources(source: str, form: Format, matching: str | None = None) -> list[Source]:
    """
    List what is read of a source, in the order of the names.

    Args:
        source: a file, a folder, or a data set of the Hub (`HUB_FORM`).
        form: the format, which says which files of a folder it reads.
        matching: only files whose path in the folder matches this pattern, for example `*original*`.

    Raises:
        ValueError: if nothing is there to be read.
    """
    if not form.files:
        return _of_the_hub(source)
    path = Path(source)
    if not path.exists():
        raise ValueError(f"{source}: there is no such file or folder")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.name.endswith(form.files))
    names = {file: file.name if path.is_file() else file.relative_to(path).as_posix() for file in files}
    files = [file for file in files if file.is_file() and not re.search(r"(?:^|/)\.", names[file])]
    files = [file for file in files if matching is None or Path(names[file]).match(matching)]
    if not files:
        which = " or ".join(form.files) + (f", and match {matching!r}" if matching else "")
        raise ValueError(f"{source} holds nothing to be read; needed: files that end in {which}")
    found = []
    for file in files:
        # a file of a Hub data set is named after its split and number; a folder above it says what it holds
        names_above = [file.stem, *(folder.name for folder in file.absolute().parents)]
        task = next((name for name in names_above if not _SHARD.fullmatch(name)), file.stem)
        found.append(Source(names[file], str(file.absolute()), task, file.stat().st_size, _mark(file)))
    return found


def _mark(file: Path) -> str:
    """Digest the size, the beginning and the end of a file: all of it would take as long as to import it."""
    size = file.stat().st_size
    digest = blake2b(str(size).encode(), digest_size=16)
    with file.open("rb") as stream:
        digest.update(stream.read(_SAMPLE))
        stream.seek(max(0, size - _SAMPLE))
        digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()


def _of_the_hub(source: str) -> list[Source]:
    """Let `datasets` download a table of the Hub; its files are named after the commit."""
    match = HUB_TABLE.fullmatch(source)
    if match is None:
        raise ValueError(f"{source!r} is no id of a data set of the Hub; write {HUB_FORM}")
    table, task = hub_table(source), match["id"].rpartition("/")[2]
    return [
        Source(f"{table.name}/{number}", str(file), task, file.stat().st_size, table.name)
        for number, file in enumerate(table.files)
    ]


class Rows:
    """
    Iterate over the rows of a source, with their numbers from 0. A row that can't be read is a `RowError`, a line with
    nothing on it `BLANK_LINE`.

    Args:
        source: the file.
        start: how many rows are left out.

    Attributes:
        position: how many bytes were read, about.
    """

    def __init__(self, source: Source, start: int = 0) -> None:
        self._source, self._start, self.position = source, start, 0

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        place = Path(self._source.place)
        if place.suffix in (".parquet", ".csv", ".arrow"):
            read = {".parquet": self._parquet, ".csv": self._csv, ".arrow": self._arrow}[place.suffix]
        else:
            read = self._json_list if _begins_a_list(place) else self._json_lines
        return enumerate(read(), self._start)

    def _json_list(self) -> Iterator[Any]:
        def tick(position: int) -> None:
            self.position = position

        rows = json_elements(Path(self._source.place), tick)
        for _, row in islice(rows, self._start, None):
            yield row

    def _json_lines(self) -> Iterator[Any]:
        with open(self._source.place, "rb") as stream:
            for line in islice(stream, self._start, None):
                self.position = stream.tell()
                try:
                    yield json.loads(line) if line.strip() else BLANK_LINE
                except (ValueError, RecursionError) as error:
                    yield RowError("no JSON", f"its line is no JSON ({error}). Correct it, or fetch the file again.")

    def _parquet(self) -> Iterator[Any]:
        import pyarrow.parquet

        file = self._source.place
        with reading_parquet(file, _HINT):
            stored = pyarrow.parquet.ParquetFile(file, pre_buffer=False, memory_map=True)
        classes, done = _classes(stored.schema_arrow), 0
        for number in range(stored.num_row_groups):
            size = stored.metadata.row_group(number).num_rows
            if done + size <= self._start:
                done += size
                continue
            batches = stored.iter_batches(_ROWS_AT_ONCE, row_groups=[number])
            while True:
                with reading_parquet(file, _HINT):
                    batch = next(batches, None)
                if batch is None:
                    break
                yield from _rows_of(batch, self._start - done, classes)
                done += len(batch)
                self.position = self._source.size * done // max(stored.metadata.num_rows, 1)

    def _csv(self) -> Iterator[Any]:
        csv_header(Path(self._source.place))  # refuses one with a name twice
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a rationale may be longer than the default
        with open(self._source.place, newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream, strict=True)
            try:
                for row in islice(rows, self._start, None):
                    if None in row or None in row.values():
                        number = len(rows.fieldnames or ())
                        yield RowError("of another form", f"it has not the {number} cells of the header. Correct it.")
                    else:
                        yield {name: cell or None for name, cell in row.items()}
            except (csv.Error, UnicodeDecodeError) as error:
                raise ValueError(f"{self._source.name}, line {rows.line_num + 1}: {error}. {_HINT}") from error

    def _arrow(self) -> Iterator[Any]:
        file = Path(self._source.place)
        schema = columns_of_files([file])
        classes, done = _classes(schema), 0
        for batch in rows_of_file(file, schema):
            yield from _rows_of(batch, self._start - done, classes)
            done += len(batch)
            self.position = min(self.position + batch.nbytes, self._source.size)


def _rows_of(batch: pyarrow.RecordBatch, start: int, classes: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch from `start` on, with the names of classes."""
    for row in batch.slice(min(max(start, 0), len(batch))).to_pylist():
        for name, names in classes.items():
            number = row[name]
            row[name] = names[number] if number is not None and 0 <= number < len(names) else None
        yield row


def _begins_a_list(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(_SAMPLE).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _classes(schema: pyarrow.Schema) -> dict[str, list[str]]:
    """Find the columns of classes, which `datasets` stores as numbers, and the names of these."""
    from datasets import ClassLabel, Features

    features = Features.from_arrow_schema(schema)
    return {name: kind.names for name, kind in features.items() if isinstance(kind, ClassLabel) and kind.names}
