"""Cut files of inputs, wherever they are, into blocks of a fixed number of rows, and read one block."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

from mmemb_r1.content import given_parts
from mmemb_r1.file_formats import reading_parquet
from mmemb_r1.json_lines import iterate_lines
from mmemb_r1.modeling.inputs_mmemb_r1 import PARTS, InputError
from mmemb_r1.modeling.media_mmemb_r1 import parse_address
from mmemb_r1.ray.media import fetching, protocol_of

LINES, ROWS = (".jsonl", ".ndjson"), (".parquet",)
_AT_ONCE = 64  # rows of a Parquet file
_READERS = 16  # media that are fetched at a time
_HINT = "Write it again."


@dataclass(frozen=True)
class Piece:
    """
    Name neighbouring inputs of one file.

    Attributes:
        file: path or address; of pictures, of their folder.
        first: number of the first row, or line from 1; of pictures, of the first name.
        count: how many inputs there are.
        offset: where the first line begins, in bytes.
        names: of pictures, from the folder.
    """

    file: str
    first: int
    count: int
    offset: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """Name the inputs of one block: its number, the number of its first input, and where they are."""

    index: int
    start: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        return sum(piece.count for piece in self.pieces)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Block:
        """Read what `to_json` wrote."""
        given = json.loads(text)
        pieces = tuple(Piece(**{**piece, "names": tuple(piece["names"])}) for piece in given["pieces"])
        return cls(given["index"], given["start"], pieces)


class Inputs(NamedTuple):
    """Hold what was read of a block: the ids that its rows bring, the inputs, and where each stands, for errors."""

    ids: list[Any]
    values: list[Any]
    places: list[str]


def plan_blocks(address: str, size: int) -> Iterator[Block]:
    """
    Cut the inputs of files into blocks of `size`, the last one of fewer.

    Of Parquet files only the footers are read, of JSON lines everything, of a folder of pictures the names.

    Args:
        address: a file, a pattern with `*`, or a folder, on any file system that fsspec knows: JSON lines (`.jsonl`),
            Parquet (`.parquet`), or pictures and videos. Of a folder all files of one kind are taken, at any depth, in
            the order of their names: Parquet files if there are any, else JSON lines, else pictures and videos.
        size: inputs per block.

    Raises:
        ValueError: if there is nothing of these, or a file is damaged.
    """
    pieces: list[Piece] = []
    index, start, room = 0, 0, size
    for file, units, name in _files(address):
        counted = iter(units)
        while chunk := list(islice(counted, room)):
            pieces.append(name(file, chunk))
            room -= len(chunk)
            if not room:
                yield Block(index, start, tuple(pieces))
                pieces, index, start, room = [], index + 1, start + size, size
    if pieces:
        yield Block(index, start, tuple(pieces))


_Namer = Callable[[str, list[Any]], Piece]


def _files(address: str) -> Iterator[tuple[str, Iterable[Any], _Namer]]:
    """List the files of an address, the units of each, and what makes a piece of neighbouring units."""
    system, path = _located(address)
    if system.isdir(path):
        found = sorted(system.find(path))
    elif any(sign in path for sign in "*?["):
        found = sorted(name for name in system.glob(path) if system.isfile(name))
    elif system.isfile(path):
        found = [path]
    else:
        raise ValueError(f"{address}: there is no such file or folder.")
    found = [name for name in found if not name.rsplit("/", 1)[-1].startswith((".", "_"))]
    named = partial(_named, protocol_of(address))
    if rows := [name for name in found if name.endswith(ROWS)]:
        for name in rows:
            yield named(name), range(_num_rows(system, name)), lambda file, chunk: Piece(file, chunk[0], len(chunk))
    elif lines := [name for name in found if name.endswith(LINES)]:
        for name in lines:
            yield (
                named(name),
                _line_starts(system, name),
                lambda file, chunk: Piece(file, chunk[0][0], len(chunk), chunk[0][1]),
            )
    elif media := [name for name in found if parse_address(name).kind in ("image", "video")]:
        folder = path if system.isdir(path) else system._parent(path)
        names = [name[len(folder.rstrip("/")) + 1 :] for name in media]
        yield (
            named(folder),
            enumerate(names),
            lambda file, chunk: Piece(file, chunk[0][0], len(chunk), names=tuple(name for _, name in chunk)),
        )
    else:
        raise ValueError(
            f"{address} holds no inputs; needed: files that end in {', '.join(ROWS + LINES)}, or pictures or videos."
        )


def _named(protocol: str | None, path: str) -> str:
    """Give the address of a path on a file system; that of a web server is one already."""
    return path if protocol is None or protocol_of(path) else f"{protocol}://{path}"


def _located(address: str) -> tuple[Any, str]:
    """Find the file system of an address, and the path on it; the same one on every machine."""
    import fsspec

    if protocol_of(address) is None:
        address = str(Path(parse_address(address).target).expanduser().absolute())
    return fsspec.core.url_to_fs(address)


def _num_rows(system: Any, path: str) -> int:
    import pyarrow.parquet

    with reading_parquet(path, _HINT), system.open(path, "rb") as stream:
        return pyarrow.parquet.read_metadata(stream).num_rows


def _line_starts(system: Any, path: str) -> Iterator[tuple[int, int]]:
    """Find the lines of a file that are not blank: their numbers from 1, and where they begin."""
    place = 0
    with system.open(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.decode("utf-8-sig" if number == 1 else "utf-8", "replace").strip():
                yield number, place
            place += len(line)


def read_block(
    block: Block,
    *,
    base: str | None = None,
    column: str | None = None,
    id_column: str | None = None,
    protocols: Sequence[str] = (),
) -> Inputs:
    """
    Read the inputs of a block, with the media that are not on this machine.

    Args:
        block: which.
        base: where relative paths of pictures and videos start. Default: the folder of each file.
        column: of Parquet files and JSON objects, the column that is the input, a text or an object. Default: the
            columns text, image, video and instruction are its parts.
        id_column: the column that is the id. Default: inputs are numbered, and pictures have their names.
        protocols: see [`fetching`].

    Raises:
        InputError: with the index in the whole stream of an input that can't be read.
        ValueError: if a file can't be read, or lacks a column.
    """
    read: list[tuple[Any, Any, str]] = []  # id, input, and where it stands
    for piece in block.pieces:
        placed = fetching(base or (piece.file if piece.names else _folder(piece.file)), protocols)
        rows = _read_piece(piece, column, id_column)
        with ThreadPoolExecutor(_READERS) as readers:
            jobs = [(name, readers.submit(placed, value), where) for name, value, where in rows]
            for name, job, where in jobs:
                try:
                    read.append((name, job.result(), where))
                except ValueError as error:
                    raise InputError(block.start + len(read), f"{where}: {error}") from error
    numbered = id_column is None and not block.pieces[0].names
    ids = [block.start + place if numbered else name for place, (name, _, _) in enumerate(read)]
    return Inputs(ids, [value for _, value, _ in read], [where for _, _, where in read])


def _folder(file: str) -> str:
    return file.rsplit("/", 1)[0] if protocol_of(file) else str(Path(file).parent)


def _read_piece(piece: Piece, column: str | None, id_column: str | None) -> list[tuple[Any, Any, str]]:
    """Read id, input and place of the inputs of a piece, as they are written."""
    if piece.names:
        kinds = [(name, parse_address(name).kind) for name in piece.names]
        return [(name, {kind: name}, f"{name} in {piece.file}") for name, kind in kinds]
    if piece.file.endswith(LINES):
        return list(_read_lines(piece, column, id_column))
    return [
        (*input_of_row(row, column, id_column), f"row {number} of {piece.file}")
        for number, row in enumerate(_rows(piece, column, id_column), start=piece.first)
    ]


def _read_lines(piece: Piece, column: str | None, id_column: str | None) -> Iterator[tuple[Any, Any, str]]:
    lines = iterate_lines(_lines(piece), lambda value: value, piece.first)
    for _ in range(piece.count):
        try:
            number, value = next(lines)
        except ValueError as error:
            raise ValueError(f"{piece.file}: {error}") from error
        where = f"line {number} of {piece.file}"
        yield (*_of_line(value, column, id_column, where), where)


def _lines(piece: Piece) -> Iterator[str]:
    system, path = _located(piece.file)
    with system.open(path, "rb") as stream:
        stream.seek(piece.offset)
        for number, line in enumerate(stream, start=piece.first):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"line {number} is no text in UTF-8 ({error})") from error


def _of_line(value: Any, column: str | None, id_column: str | None, where: str) -> tuple[Any, Any]:
    """Find id and input in a line: all of it is the input, without the id, unless a column is."""
    name = None
    for key in (id_column, column):
        if key is not None and not (isinstance(value, dict) and key in value):
            raise ValueError(f"{where} has no {key!r}; each line needs it, or name another.")
    if id_column is not None:
        name, value = value[id_column], {key: part for key, part in value.items() if key != id_column}
    return name, value if column is None else _as_input(value[column])


def input_of_row(row: dict[str, Any], column: str | None, id_column: str | None) -> tuple[Any, Any]:
    """
    Find id and input in a row of a table.

    >>> input_of_row({"id": 7, "text": "Lima", "image": None, "year": 1535}, None, "id")
    (7, {'text': 'Lima'})
    """
    name = None if id_column is None else row[id_column]
    if column is not None:
        return name, _as_input(row[column])
    return name, given_parts({part: row[part] for part in PARTS if part in row})


def _as_input(value: Any) -> Any:
    """Take a cell as an input: a text is one, whatever it looks like; of an object, the parts that are given."""
    return {"text": value} if isinstance(value, str) else given_parts(value) if isinstance(value, dict) else value


def wanted_columns(names: Sequence[str], column: str | None, id_column: str | None, what: str) -> list[str]:
    """
    List the columns of a table that are read.

    Raises:
        ValueError: if one is missing, or none is an input.
    """
    wanted = [column] if column is not None else [part for part in PARTS if part in names]
    wanted += [] if id_column is None or id_column in wanted else [id_column]
    missing = [name for name in wanted if name not in names]
    if missing or wanted in ([], [id_column]):
        raise ValueError(
            f"{what} has no column {missing[0]!r}; there are: {', '.join(names) or 'none'}."
            if missing
            else f"{what} has none of the columns {', '.join(PARTS)}; name the one that is the input. There are: "
            f"{', '.join(names) or 'none'}."
        )
    return wanted


def _rows(piece: Piece, column: str | None, id_column: str | None) -> Iterator[dict[str, Any]]:
    """Read rows of a Parquet file, and no more of its groups of rows than they are in."""
    import pyarrow.parquet

    system, path = _located(piece.file)
    with system.open(path, "rb") as stream:
        with reading_parquet(piece.file, _HINT):
            stored = pyarrow.parquet.ParquetFile(stream, pre_buffer=False)
            names = stored.schema_arrow.names
            sizes = [stored.metadata.row_group(group).num_rows for group in range(stored.num_row_groups)]
        columns = wanted_columns(names, column, id_column, piece.file)
        ends = list(accumulate(sizes))
        groups = [
            group
            for group, end in enumerate(ends)
            if end > piece.first and end - sizes[group] < piece.first + piece.count
        ]
        skip = piece.first - (ends[groups[0]] - sizes[groups[0]] if groups else 0)
        batches = stored.iter_batches(_AT_ONCE, row_groups=groups, columns=columns)
        yield from islice(_of_batches(batches, piece.file), skip, skip + piece.count)


def _of_batches(batches: Iterator[Any], file: str) -> Iterator[dict[str, Any]]:
    while True:
        with reading_parquet(file, _HINT):
            batch = next(batches, None)
            if batch is not None:
                batch.validate(full=True)  # damaged offsets would end the process later, or give other rows
        if batch is None:
            return
        yield from batch.to_pylist()
