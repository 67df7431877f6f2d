"""Read the rows of a source one after another, in constant memory: JSON lists and lines, Parquet, CSV, `datasets`."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from mmemb_r1.file_formats import reading_parquet
from mmemb_r1.training.importing.formats import Format
from mmemb_r1.training.importing.pair import RowError

_SHARD = re.compile(r"(?:train|test|val|validation|data|original|diverse_instruction)?(?:[-_]?\d+-of-\d+)?")
_ROWS_AT_ONCE = 32  # a page's picture takes half a megabyte
_SAMPLE = 2**20  # bytes
_HINT = "Fetch the file again."


@dataclass(frozen=True)
class Source:
    """
    Name a file whose rows are read, or a whole source that `datasets` reads.

    Attributes:
        name: within the source, for messages, shards and the record of the run.
        place: the file, or what `datasets` loads.
        task: of its rows, where they name none.
        size: in bytes; 0 where that is not known.
        mark: changes where the content does.
        loader: see [`Format`].
    """

    name: str
    place: str
    task: str
    size: int = 0
    mark: str = ""
    loader: str | None = None


def list_sources(source: str, form: Format, matching: str | None = None) -> list[Source]:
    """
    List what is read of a source, in the order of the names.

    Args:
        source: a file, a folder, or a Hub id (`org/name`, `org/name:config`, `org/name:config/split`).
        form: the format, which says by their endings which files of a folder it reads.
        matching: only files whose path in the folder matches this pattern, for example `*original*`.

    Raises:
        ValueError: if nothing is there to be read.
    """
    if form.loader == "hub":
        return [_of_the_hub(source)]
    path = Path(source)
    if not path.exists():
        raise ValueError(f"{source}: there is no such file or folder")
    if form.loader is not None:
        if not path.is_dir():
            raise ValueError(f"{source} is no folder; allowed: a folder of pictures with a metadata.csv or .jsonl")
        metadata = sorted(file for file in path.rglob("metadata.*") if file.is_file())
        return [Source(path.name, str(path.absolute()), path.name, 0, "".join(map(_mark, metadata)), form.loader)]
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in form.files)
    names = {file: file.name if path.is_file() else file.relative_to(path).as_posix() for file in files}
    files = [file for file in files if not any(part.startswith(".") for part in Path(names[file]).parts)]
    files = [file for file in files if matching is None or Path(names[file]).match(matching)]
    if not files:
        which = f"{', '.join(form.files)}" + (f" and the path {matching!r}" if matching else "")
        raise ValueError(f"{source} holds nothing to be read; needed: files with the endings {which}")
    found = []
    for file in files:
        # a file of a Hub data set is named after its split and number; its folder says what it holds
        task = file.stem if not _SHARD.fullmatch(file.stem) else file.absolute().parent.name
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


def _of_the_hub(source: str) -> Source:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    name, _, rest = source.partition(":")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise ValueError(
            f"{source!r} is no id of a data set; write ORG/NAME, ORG/NAME:CONFIG or ORG/NAME:CONFIG/SPLIT"
        )
    try:
        commit = HfApi().dataset_info(name).sha
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(f"the data set {name} can't be read: {str(error).splitlines()[0]}") from error
    return Source(source, f"{name}:{rest}", name.rpartition("/")[2], 0, str(commit), "hub")


class Rows:
    """
    Iterate over the rows of a source, with their numbers from 0. A row that can't be read is a `RowError`, a line that
    is blank is `None`.

    Args:
        source: the file.
        start: how many rows are left out.

    Attributes:
        position: how many bytes were read, about.
    """

    def __init__(self, source: Source, start: int = 0) -> None:
        self._source, self._start, self.position = source, start, 0

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        suffix = Path(self._source.place).suffix
        if self._source.loader is not None:
            rows = self._loaded()
        elif suffix == ".parquet":
            rows = self._parquet()
        elif suffix == ".csv":
            rows = self._csv()
        else:
            rows = self._json()
        return enumerate(rows, self._start)

    def _json(self) -> Iterator[Any]:
        with open(self._source.place, "rb") as stream:
            first = stream.read(_SAMPLE).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
            stream.seek(0)
            yield from self._json_list(stream) if first == b"[" else self._json_lines(stream)

    def _json_list(self, stream: BinaryIO) -> Iterator[Any]:
        try:
            import ijson
        except ImportError as error:
            raise ImportError("a JSON list is read with ijson: pip install 'mmemb-r1[import]'") from error
        number = 0
        try:
            for number, row in enumerate(ijson.items(stream, "item", use_float=True), 1):
                self.position = stream.tell()
                if number > self._start:
                    yield row
        except (ijson.JSONError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{self._source.name} is damaged after row {number - 1}, counted from 0 ({reason:.200}): a JSON list "
                f"can't be read further. {_HINT} The rows before are kept."
            ) from error

    def _json_lines(self, stream: BinaryIO) -> Iterator[Any]:
        for line in islice(stream, self._start, None):
            self.position = stream.tell()
            try:
                yield json.loads(line) if line.strip() else None
            except ValueError as error:
                yield RowError("no JSON", f"its line is no JSON ({error}). Correct it, or fetch the file again.")

    def _parquet(self) -> Iterator[Any]:
        import pyarrow.parquet

        file = self._source.place
        with reading_parquet(file, _HINT):
            stored = pyarrow.parquet.ParquetFile(file, pre_buffer=False, memory_map=True)
        done = 0
        for number in range(stored.num_row_groups):
            size = stored.metadata.row_group(number).num_rows
            if done + size > self._start:
                batches = stored.iter_batches(_ROWS_AT_ONCE, row_groups=[number])
                while True:
                    with reading_parquet(file, _HINT):
                        batch = next(batches, None)
                    if batch is None:
                        break
                    skip = max(0, min(self._start - done, len(batch)))
                    done += len(batch)
                    self.position = self._source.size * done // max(stored.metadata.num_rows, 1)
                    yield from batch.slice(skip).to_pylist()
            else:
                done += size

    def _csv(self) -> Iterator[Any]:
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

    def _loaded(self) -> Iterator[Any]:
        import datasets

        place, loader = self._source.place, self._source.loader
        if loader == "hub":
            name, _, rest = place.partition(":")
            config, _, split = rest.partition("/")
            table = datasets.load_dataset(
                name, config or None, split=split or "train", streaming=True, revision=self._source.mark
            )
        else:
            table = datasets.load_dataset(str(loader), data_dir=place, split="train", streaming=True)
        for column, feature in (table.features or {}).items():
            if isinstance(feature, datasets.Image):
                table = table.cast_column(column, datasets.Image(decode=False))
        yield from table.skip(self._start)
