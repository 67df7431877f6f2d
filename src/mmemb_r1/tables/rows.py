"""Read the rows of a file, a few at a time: Parquet, JSON lines, JSON, CSV, Arrow of `datasets`."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
HINT = "Give a table as docs/training.md describes it, or fetch the file again."
_LARGE_ROWS_AT_ONCE = 32  # where whole rows are read: a page's picture takes half a megabyte
_CHUNK = 2**16  # characters of a JSON list that are read at once, or more where an element is longer
_BETWEEN = re.compile(r"[\s,]*")

# a row, and the line (or element) that it begins in, counted from 1; for one that can't be read, the error
Numbered = tuple[int, Any]
Tick = Callable[[int], None]  # is called now and then with the number of bytes that were read, about


def _no_tick(position: int) -> None:
    """Tell nobody."""


class _Text(NamedTuple):
    """Say how a file holds rows as text: how it is read, and what errors call their form and a row."""

    read: Callable[[Path, Tick], Iterator[Numbered]]
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
    if suffix not in _SUFFIXES:
        return _stored_schema(files[0])
    schema = pyarrow.schema([])
    for file in files:
        for rows in _parts(file):
            schema = _columns_with(file, rows, schema)
    return schema


def _stored_schema(file: Path) -> pyarrow.Schema:
    """Read the columns of a binary file, and check that they can be told apart and `datasets` knows their types."""
    import pyarrow.parquet
    from datasets import Features

    if file.suffix == ".arrow":
        with reading_parquet(file, HINT, "Arrow stream"), pyarrow.memory_map(str(file)) as source:
            schema = pyarrow.ipc.open_stream(source).schema
    else:
        with reading_parquet(file, HINT):
            schema = pyarrow.parquet.read_schema(file)
    if again := [name for place, name in enumerate(schema.names) if name in schema.names[:place]]:
        raise ValueError(f"{file} has two columns {again[0]!r}; write it again, each column with its own name.")
    try:
        Features.from_arrow_schema(schema)
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # of any metadata that somebody wrote
        raise ValueError(
            f"{file}: `datasets` does not know its columns ({' '.join(str(error).split()):.200}). Write it again with "
            "columns of texts, numbers, lists and structs, and without the metadata `huggingface` if that is of "
            "another version."
        ) from error
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
    if file.suffix in _SUFFIXES:
        return _rows_of_text(file, schema)
    return _rows_of_arrow(file, schema, ROWS_AT_ONCE)


def read_rows(file: Path, start: int = 0, tick: Tick = _no_tick) -> Iterator[Any]:
    """
    Read the rows of a file one after another, in constant memory, each one as it is: rows need not go together.

    Args:
        file: the file.
        start: the number of the first one that is read, counted from 0 without blank lines.
        tick: is called now and then with the number of bytes that were read, about.

    Yields:
        what a row holds: a dict, of JSON any value. Classes of `datasets` are their names. For a row that can't be
        read while those after it can, a `ValueError` that names the file and the line.

    Raises:
        ValueError: naming the file, and of text the line, if nothing more can be read.
    """
    if file.suffix in _SUFFIXES:
        for number, row in islice(_text(file).read(file, tick), start, None):
            yield _unreadable(file, number, row) if isinstance(row, Exception) else row
        return
    schema = columns_of_files([file])
    classes = _classes(schema)
    for batch in _rows_of_arrow(file, schema, _LARGE_ROWS_AT_ONCE, start, tick):
        for row in batch.to_pylist():
            for name, names in classes.items():
                number = row[name]
                row[name] = names[number] if number is not None and 0 <= number < len(names) else None
            yield row


def _classes(schema: pyarrow.Schema) -> Mapping[str, Sequence[str]]:
    """Find the columns of classes, which `datasets` stores as numbers, and the names of these."""
    from datasets import ClassLabel, Features

    features = Features.from_arrow_schema(schema)
    return {name: kind.names for name, kind in features.items() if isinstance(kind, ClassLabel) and kind.names}


def _rows_of_text(file: Path, schema: pyarrow.Schema) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    if file.suffix == ".csv":
        _check_names(file, csv_header(file), schema)
    for rows in _parts(file):
        try:
            batch = pyarrow.RecordBatch.from_pylist([row for _, row in rows], schema)
        except (pyarrow.ArrowException, ValueError, OverflowError) as error:
            for number, row in rows:
                with _explained(file, number):
                    pyarrow.RecordBatch.from_pylist([row], schema)
            raise _unreadable(file, None, error) from error
        yield batch


def _rows_of_arrow(
    file: Path, schema: pyarrow.Schema, at_once: int, start: int = 0, tick: Tick = _no_tick
) -> Iterator[pyarrow.RecordBatch]:
    """Read the rows of a binary file from number `start` on, at most `at_once` at a time."""
    import pyarrow
    import pyarrow.parquet

    batches: Iterator[pyarrow.RecordBatch]
    kind = "Arrow stream" if file.suffix == ".arrow" else "Parquet file"
    size, done, total = file.stat().st_size, 0, 0
    with reading_parquet(file, HINT, kind):
        if file.suffix == ".arrow":
            stream = pyarrow.ipc.open_stream(pyarrow.memory_map(str(file)))
            names, whole = stream.schema.names, iter(stream)
            batches = (one.slice(at, at_once) for one in whole for at in range(0, len(one), at_once))
        else:
            # by default all groups of rows are read ahead, and kept until the end
            stored = pyarrow.parquet.ParquetFile(file, pre_buffer=False, memory_map=True)
            names, total = stored.schema_arrow.names, stored.metadata.num_rows
            groups = [stored.metadata.row_group(number).num_rows for number in range(stored.num_row_groups)]
            first = 0
            while first < len(groups) and done + groups[first] <= start:
                done, first = done + groups[first], first + 1
            batches = stored.iter_batches(at_once, row_groups=range(first, len(groups)))
    _check_names(file, names, schema)
    read = 0
    while True:
        with reading_parquet(file, HINT, kind):
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)  # damaged offsets would end the process later, or give other rows
            done, read, before = done + len(batch), read + batch.nbytes, done
            batch = batch.slice(min(max(start - before, 0), len(batch))).select(schema.names)
            if not batch.schema.equals(schema):
                batch = batch.cast(schema)
        tick(size * done // total if total else min(read, size))
        if len(batch):
            yield batch


def _check_names(file: Path, names: Sequence[str], schema: pyarrow.Schema) -> None:
    if missing := sorted(set(schema.names) - set(names)):
        raise ValueError(
            f"{file} has no column {missing[0]!r}, which the table's first file has. All files of a table need the "
            "same columns."
        )


def _parts(file: Path) -> Iterator[list[Numbered]]:
    """Read the rows of a text file, some at a time; each is a mapping."""
    rows = _text(file).read(file, _no_tick)
    while part := list(islice(rows, ROWS_AT_ONCE)):
        for number, row in part:
            if not isinstance(row, dict):
                error = row if isinstance(row, Exception) else ValueError(f"it is {row!r:.80}")
                raise _unreadable(file, number, error) from error
        yield part


def with_columns_of(schema: pyarrow.Schema, rows: Sequence[Any]) -> pyarrow.Schema:
    """Add the columns of rows, the keys of all of them, to a schema; an `ArrowException` if they don't go with it."""
    import pyarrow

    found = pyarrow.schema(list(pyarrow.array(rows).type))
    return pyarrow.unify_schemas([schema, found], promote_options="permissive")


def _columns_with(file: Path, rows: list[Numbered], schema: pyarrow.Schema) -> pyarrow.Schema:
    """Add the columns of rows to a schema; of those that don't go with it, the error names the first."""
    import pyarrow

    try:
        return with_columns_of(schema, [row for _, row in rows])
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        for number, row in rows:
            with _explained(file, number):
                schema = with_columns_of(schema, [row])
        raise _unreadable(file, None, error) from error


@contextmanager
def _explained(file: Path, number: int) -> Iterator[None]:
    """Turn what is wrong with a row of text into a `ValueError` that names the file and the line."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, ValueError, OverflowError, csv.Error, RecursionError) as error:
        raise _unreadable(file, number, error) from error


def _unreadable(file: Path, number: int | None, error: Exception) -> ValueError:
    text = _text(file)
    where = "" if number is None else f", {text.unit} {number}"
    reason = " ".join(str(error).split())
    return ValueError(f"{file}{where} can't be read: {text.unit}s have to be {text.form} ({reason:.200}). {HINT}")


def _json_lines(file: Path, tick: Tick) -> Iterator[Numbered]:
    """Read the values of JSON lines; blank lines are none."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            tick(stream.tell())
            row: Any
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                row = error
            yield number, row


def _json_elements(file: Path, tick: Tick) -> Iterator[Numbered]:
    """Read the elements of a JSON list, or values one after another, without holding them all."""
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


def _csv_rows(file: Path, tick: Tick) -> Iterator[Numbered]:
    """Read the rows of CSV with a header, comma-separated; an empty cell is null, any other one text."""
    names = csv_header(file)
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a rationale may be longer than the default
    with file.open("rb") as raw, TextIOWrapper(raw, encoding="utf-8-sig", newline="") as stream:
        rows = csv.reader(stream, strict=True)
        next(rows)
        while True:
            number = rows.line_num + 1
            with _explained(file, number):
                row = next(rows, None)
            if row is None:
                return
            tick(raw.tell())
            if row and len(row) != len(names):
                yield number, ValueError(f"it has {len(row)} cells, and the header {len(names)}")
            elif row:
                yield number, {name: cell or None for name, cell in zip(names, row, strict=True)}


def csv_header(file: Path) -> list[str]:
    """Read the names of the columns of a CSV file, each of which is there once."""
    with _explained(file, 1), file.open(encoding="utf-8-sig", newline="") as stream:
        names = next(csv.reader(stream, strict=True), [])
        if not names or len(set(names)) < len(names) or not all(names):
            raise ValueError(f"its header is {', '.join(map(repr, names)) or 'empty'}; each column needs its own name")
    return names


_JSON = "JSON objects of one form"
_LINES = _Text(_json_lines, _JSON, "line")
_ELEMENTS = _Text(_json_elements, _JSON, "element")
_CSV = _Text(_csv_rows, "rows of comma-separated values after a header", "line")
_SUFFIXES = (".jsonl", ".json", ".csv")  # of text


def _text(file: Path) -> _Text:
    """Tell how a file of text holds its rows; whether JSON is a list or lines, is seen by its content."""
    if file.suffix == ".csv":
        return _CSV
    with file.open("rb") as stream:
        first = stream.read(_CHUNK).removeprefix(b"\xef\xbb\xbf").lstrip()
    if first.startswith(b"["):
        return _ELEMENTS
    line, more, _ = first.partition(b"\n")
    is_whole = not more or line.rstrip().endswith(b"}")  # not so where a value takes several lines
    return _LINES if file.suffix == ".jsonl" or is_whole else _ELEMENTS
