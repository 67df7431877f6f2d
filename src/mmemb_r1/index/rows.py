"""Read the rows of a table as items: CSV, JSON lines, Parquet, folders of `datasets`, data sets of the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.content import content_key, given_parts, path_from
from mmemb_r1.index.items import Item, Opened, Source, Unreadable
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions, parse_address, stored_source
from mmemb_r1.modeling.options_mmemb_r1 import nearest_name
from mmemb_r1.tables.files import OF_A_FILE, PICTURES, SAVED, SPLITS, open_table, table_files
from mmemb_r1.tables.pairs import hub_table, is_hub_table
from mmemb_r1.tables.rows import ROWS_AT_ONCE

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

MEDIA = ("image", "video")
OURS = ("id", "text", *MEDIA)


def is_table(source: Any) -> bool:
    """
    Tell whether a source is a table: a data set in memory or of the Hub, a file of a table's suffix, or a folder that
    `save_to_disk` wrote, that holds pictures with their metadata, or nothing but files of tables.
    """
    if not isinstance(source, str | os.PathLike) or is_hub_table(source):
        return True
    path = Path(source)
    if not path.is_dir():
        return path.suffix.lower() in OF_A_FILE
    names = [file.name for file in path.iterdir() if not file.name.startswith(".")]
    return bool({SAVED, SPLITS, *PICTURES} & set(names)) or (
        bool(names) and all(name.lower().endswith(OF_A_FILE) for name in names)
    )


def table_source(source: Any, columns: Mapping[str, str] | None = None, base: Path | None = None) -> Source:
    """
    Read a table, one row an item.

    Args:
        source: see [`is_table`].
        columns: our name (`id`, `text`, `image`, `video`) -> column that is it. `image` and `video` hold paths, web
            addresses, or undecoded media of `datasets`. Default: columns of our names, and `file_name` in the metadata
            of pictures. All other columns are metadata. Ids are made where there are none: the path, or `row N`.
        base: where relative paths start. Default: the folder of the file.

    Raises:
        ValueError: if the table can't be read, or has no such columns.
    """
    table, name, folder = _opened(source, base)
    stored = table.features.arrow_schema
    known = _columns(columns, stored.names, name)
    kept = [field for field in stored if field.name not in known.values() and _is_metadata(field.type)]

    def items(media: MediaOptions) -> Iterator[Item | Unreadable | int]:
        number = 0
        for rows in table.with_format("arrow").iter(ROWS_AT_ONCE):
            for row in rows.to_pylist():
                number += 1
                yield _item(row, number, known, [field.name for field in kept], folder, media)
                yield 1

    import pyarrow

    return Source(name, len(table), items, pyarrow.struct(kept) if kept else None)


def _opened(source: Any, base: Path | None) -> tuple[Dataset, str, Path]:
    """Open a table; also tell its name, and where relative paths start."""
    if not isinstance(source, str | os.PathLike):
        from datasets import Dataset

        if not isinstance(source, Dataset):
            raise ValueError(
                f"source is {source!r:.80}; allowed: a folder, a file, the id of a data set, or a Dataset of datasets."
            )
        return source, "a Dataset", base or Path()
    if is_hub_table(source):
        found = hub_table(os.fspath(source))
        return open_table(found.files), found.name.partition("@")[0], base or Path()
    files = table_files(Path(source))
    return open_table(files), str(Path(source).absolute()), base or files[0].parent.absolute()


def _columns(given: Mapping[str, str] | None, names: list[str], table: str) -> dict[str, str]:
    """Find which columns are ours: our name -> theirs."""
    usual = {ours: ours for ours in OURS if ours in names}
    if "image" not in usual and "file_name" in names:
        usual["image"] = "file_name"
    for ours, theirs in (given or {}).items():
        if ours not in OURS:
            raise ValueError(f"columns: {ours!r} is not known; allowed: {', '.join(OURS)}{nearest_name(ours, OURS)}")
        if theirs not in names:
            raise ValueError(
                f"{table} has no column {theirs!r}; it has {', '.join(names)}{nearest_name(theirs, names)}"
            )
    known = {**usual, **(given or {})}
    if not set(known) & {"text", *MEDIA}:
        raise ValueError(
            f"{table} has none of the columns text, image and video, but {', '.join(names)}; say which column is "
            "what: --columns image=THEIRS text=THEIRS id=THEIRS"
        )
    return known


def _is_metadata(kind: pyarrow.DataType) -> bool:
    """Tell whether values of a column are told beside a result: numbers, texts, times, and lists of these."""
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind):
        return _is_metadata(kind.value_type)
    return not (types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind) or types.is_null(kind))


def _item(
    row: Mapping[str, Any],
    number: int,
    columns: Mapping[str, str],
    kept: list[str],
    folder: Path,
    media: MediaOptions,
) -> Item | Unreadable:
    given = {ours: row[theirs] for ours, theirs in columns.items()}
    path = next((found for part in MEDIA if (found := _path(given.get(part))) is not None), None)
    name = given.pop("id", None)
    name = path or f"row {number}" if name is None else str(name)
    value = given_parts({part: path_from(folder, one) if part in MEDIA else one for part, one in given.items()})
    if not isinstance(value.get("text", ""), str):
        value["text"] = str(value["text"])
    if not value:
        return Unreadable(name, f"row {number} has no text, image or video")
    kind = next((part for part in MEDIA if part in value), "text")
    opened = partial(Opened, value, value.get("text", ""))
    metadata = {column: row[column] for column in kept}
    return Item(name, kind, content_key(value, media), opened, path=path, metadata=metadata)


def _path(medium: Any) -> str | None:
    """Tell the path or address of a picture or video (of several, the first), as the table has it."""
    if isinstance(medium, list):
        return _path(medium[0]) if medium else None
    if isinstance(medium, Mapping):
        return medium.get("path")
    source = stored_source(medium)
    return source if isinstance(source, str) and parse_address(source).place != "data" else None
