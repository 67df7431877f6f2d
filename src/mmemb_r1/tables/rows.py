"""Read the rows of a file as Arrow batches, a few at a time: Parquet, JSON lines, JSON, CSV, Arrow of `datasets`."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmemb_r1.file_formats import reading_parquet

if TYPE_CHECKING:
    import pyarrow


ROWS_AT_ONCE = 256
NOT_PARQUET = (".jsonl", ".json", ".csv", ".arrow")  # a file with any other suffix is taken for Parquet
HINT = "Give a table, see docs/training.md."
_CHUNK = 2**16  # characters of a JSON list that are read at once, or more where an element is longer
_BETWEEN = re.compile(r"[\s,]*")

Numbered = tuple[int, Any]  # a row, and the line (or element) that it begins in, counted from 1


class _Text(NamedTuple):
    """Say how files of a suffix hold rows as text: how they are read, and what errors call their form and a row."""

    read: Callable[[Path], Iterator[Numbered]]
    form: str
    unit: str


def columns_of_files(files: Sequence[Path]) -> pyarrow.Schema:
    """
    Find the columns of files of one kind, and their types: those of the first file, or of JSON those of all rows.

    Raises:
        ValueError: naming the file, and of text the line, if it can't be read or rows don't go together.
    """
    import pyarrow
    import pyarrow.parquet

    suffix = files[0].suffix
    if suffix == ".csv":  # all texts: what looks like a number, or like `NA`, is none
        return pyarrow.schema([(name, pyarrow.string()) for name in csv_header(files[0])])
    if suffix == ".arrow":
        with reading_parquet(files[0], HINT, "Arrow stream"), pyarrow.memory_map(str(files[0])) as source:
            return pyarrow.ipc.open_stream(source).schema
    if suffix not in _TEXTS:
        with reading_parquet(files[0], HINT):
            return pyarrow.parquet.read_schema(files[0])
    schema = pyarrow.schema([])
    for file in files:
        for rows in _parts(file):
            schema = _with_columns_of(file, rows, schema)
    return schema


def rows_of_file(file: Path, schema: pyarrow.Schema) -> Iterator[pyarrow.RecordBatch]:
    """
    Read the rows of a file, at most `ROWS_AT_ONCE` at a time.

    Args:
        file: the file.
        schema: of all files of its table, see [`columns_of_files`]. What it does not name is left out.

    Raises:
        ValueError: naming the file, and of text the line, if it can't be read or lacks a column.
    """
    if file.suffix in _TEXTS:
        return _rows_of_text(file, schema)
    return _rows_of_arrow(file, schema)


def _rows_of_text(file: Path, schema: pyarrow.Schema) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    if file.suffix == ".csv":
        _check_names(file, csv_header(file), schema)
    for rows in _parts(file):
        try:
            batch = pyarrow.RecordBatch.from_pylist([row for _, row in rows], schema)
        except (pyarrow.ArrowException, ValueError) as error:
            for number, row in rows:
                with _explained(file, number):
                    pyarrow.RecordBatch.from_pylist([row], schema)
            raise _unreadable(file, None, error) from error
        yield batch


def _rows_of_arrow(file: Path, schema: pyarrow.Schema) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow
    import pyarrow.parquet

    batches: Iterator[pyarrow.RecordBatch]
    kind = "Arrow stream" if file.suffix == ".arrow" else "Parquet file"
    with reading_parquet(file, HINT, kind):
        if file.suffix == ".arrow":
            stream = pyarrow.ipc.open_stream(pyarrow.memory_map(str(file)))
            names, whole = stream.schema.names, iter(stream)
            batches = (one.slice(at, ROWS_AT_ONCE) for one in whole for at in range(0, len(one), ROWS_AT_ONCE))
        else:
            # by default all groups of rows are read ahead, and kept until the end
            stored = pyarrow.parquet.ParquetFile(file, pre_buffer=False, memory_map=True)
            names, batches = stored.schema_arrow.names, stored.iter_batches(ROWS_AT_ONCE)
    _check_names(file, names, schema)
    while True:
        with reading_parquet(file, HINT, kind):
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)  # damaged offsets would end the process later, or give other rows
            batch = batch.select(schema.names)
            if not batch.schema.equals(schema):
                batch = batch.cast(schema)
        yield batch


def _check_names(file: Path, names: Sequence[str], schema: pyarrow.Schema) -> None:
    if missing := sorted(set(schema.names) - set(names)):
        raise ValueError(
            f"{file} has no column {missing[0]!r}, which the table's first file has. All files of a table need the "
            "same columns."
        )


def _parts(file: Path) -> Iterator[list[Numbered]]:
    """Read the rows of a text file, some at a time; each is a mapping."""
    rows = _TEXTS[file.suffix].read(file)
    while part := list(islice(rows, ROWS_AT_ONCE)):
        for number, row in part:
            if not isinstance(row, dict):
                raise _unreadable(file, number, ValueError(f"it is {row!r:.80}"))
        yield part


def _with_columns_of(file: Path, rows: list[Numbered], schema: pyarrow.Schema) -> pyarrow.Schema:
    """Add the columns of rows to a schema; of those that don't go with it, the error names the first."""
    import pyarrow

    def added(schema: pyarrow.Schema, *values: Any) -> pyarrow.Schema:
        found = pyarrow.schema(list(pyarrow.array(values).type))  # of the keys of all rows
        return pyarrow.unify_schemas([schema, found], promote_options="permissive")

    try:
        return added(schema, *(row for _, row in rows))
    except (pyarrow.ArrowException, ValueError) as error:
        for number, row in rows:
            with _explained(file, number):
                schema = added(schema, row)
        raise _unreadable(file, None, error) from error


@contextmanager
def _explained(file: Path, number: int) -> Iterator[None]:
    """Turn what is wrong with a row of text into a `ValueError` that names the file and the line."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, ValueError, csv.Error, RecursionError) as error:
        raise _unreadable(file, number, error) from error


def _unreadable(file: Path, number: int | None, error: Exception) -> ValueError:
    text = _TEXTS[file.suffix]
    where = "" if number is None else f", {text.unit} {number}"
    reason = " ".join(str(error).split())
    return ValueError(f"{file}{where} can't be read: {text.unit}s have to be {text.form} ({reason:.200}). {HINT}")


def _json_lines(file: Path) -> Iterator[Numbered]:
    """Read the values of JSON lines; blank lines are none."""
    number = 0
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            with _explained(file, number):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                row = (json.loads(text),) if text.strip() else ()
            for value in row:
                yield number, value


def json_elements(file: Path, tick: Callable[[int], None] = lambda position: None) -> Iterator[Numbered]:
    """
    Read the elements of a JSON list, or values one after another as in JSON lines, without holding them all.

    Args:
        file: the file.
        tick: is called now and then with the number of bytes that were read.
    """
    decoder = json.JSONDecoder()
    text, place, number = "", 0, 0
    last: str | None = None  # what ends the values: "]", or nothing; not known before the first character
    with file.open("rb") as raw, TextIOWrapper(raw, encoding="utf-8-sig") as stream:
        while True:
            place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]  # it matches nothing, too
            if last is None and place < len(text):
                last = "]" if text[place] == "[" else ""
                place += len(last)
                continue
            if place < len(text) and text[place] == last:
                with _explained(file, number + 1):
                    if (text[place + 1 :] + stream.read(_CHUNK)).strip():
                        raise ValueError("it comes after the end of the list")
                return
            if place < len(text):
                try:
                    value, place = decoder.raw_decode(text, place)
                except (json.JSONDecodeError, RecursionError) as error:
                    if not _is_cut(error, text):
                        raise _unreadable(file, number + 1, error) from error
                else:
                    number += 1
                    yield number, value
                    continue
            with _explained(file, number + 1):
                more = stream.read(max(_CHUNK, len(text) - place))
                tick(raw.tell())
                if not more and (last or place < len(text)):
                    raise ValueError("the file ends within it")
            if not more:
                return
            text, place = text[place:] + more, 0


def _is_cut(error: Exception, text: str) -> bool:
    """Tell whether more text may make whole what could not be decoded."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos > len(text) - len('"\\ud800\\udc00')


def _csv_rows(file: Path) -> Iterator[Numbered]:
    """Read the rows of CSV with a header, comma-separated; an empty cell is null, any other one text."""
    names = csv_header(file)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.reader(stream, strict=True)
        next(rows)
        while True:
            number = rows.line_num + 1
            with _explained(file, number):
                row = next(rows, None)
                if row and len(row) != len(names):
                    raise ValueError(f"it has {len(row)} cells, and the header {len(names)}")
            if row is None:
                return
            if row:
                yield number, {name: cell or None for name, cell in zip(names, row, strict=True)}


def csv_header(file: Path) -> list[str]:
    """Read the names of the columns of a CSV file, each of which is there once."""
    with _explained(file, 1), file.open(encoding="utf-8-sig", newline="") as stream:
        names = next(csv.reader(stream, strict=True), [])
        if not names or len(set(names)) < len(names) or not all(names):
            raise ValueError(f"its header is {', '.join(map(repr, names)) or 'empty'}; each column needs its own name")
    return names


_TEXTS = {
    ".jsonl": _Text(_json_lines, "JSON objects of one form", "line"),
    ".json": _Text(json_elements, "JSON objects of one form", "element"),
    ".csv": _Text(_csv_rows, "rows of comma-separated values after a header", "line"),
}
