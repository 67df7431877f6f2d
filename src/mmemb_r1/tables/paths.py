"""Make the relative paths in a table start from the folder of its file, as those of JSON lines do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmemb_r1.content import path_from

if TYPE_CHECKING:
    import pyarrow


INPUT_COLUMNS = ("query", "target", "negatives", "input")  # of pairs, and of a table of candidates


def table_paths_from(folder: Path, table: pyarrow.Table) -> pyarrow.Table:
    """
    Make the relative paths of pictures and videos in a table's inputs start from a folder.

    Args:
        folder: where they start.
        table: with any of the columns `INPUT_COLUMNS`, each an input or a list of inputs. Others stay as they are.
    """
    import pyarrow

    for place, field in enumerate(table.schema):
        if field.name in INPUT_COLUMNS:
            chunks = [_inputs_from(folder, whole_array(chunk)) for chunk in table.column(place).chunks]
            table = table.set_column(place, field, pyarrow.chunked_array(chunks, type=field.type))
    return table


def whole_array(values: pyarrow.Array) -> pyarrow.Array:
    """Copy an array that is a part of another: Arrow can't make lists anew of their parts there."""
    import pyarrow

    return pyarrow.concat_arrays([values, values[:0]]) if values.offset else values


def _inputs_from(folder: Path, values: pyarrow.Array) -> pyarrow.Array:
    import pyarrow

    kind = values.type
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        make = type(values).from_arrays
        return make(values.offsets, _inputs_from(folder, values.values), type=kind, mask=values.is_null())
    if not pyarrow.types.is_struct(kind):
        return values
    parts = [
        _paths_from(folder, values.field(part.name)) if part.name in ("image", "video") else values.field(part.name)
        for part in values.type
    ]
    return pyarrow.StructArray.from_arrays(parts, fields=list(values.type), mask=values.is_null())


def _paths_from(folder: Path, media: pyarrow.Array) -> pyarrow.Array:
    import pyarrow

    kind = media.type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return pyarrow.array([path_from(folder, path) for path in media.to_pylist()], type=kind)
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        make = type(media).from_arrays
        return make(media.offsets, _paths_from(folder, media.values), type=kind, mask=media.is_null())
    if pyarrow.types.is_struct(kind) and {field.name for field in kind} >= {"bytes", "path"}:
        given = media.field("bytes").is_valid().to_pylist()
        paths = media.field("path").to_pylist()
        paths = [path if there else path_from(folder, path) for there, path in zip(given, paths, strict=True)]
        parts = [
            pyarrow.array(paths, type=field.type) if field.name == "path" else media.field(field.name)
            for field in kind
        ]
        return pyarrow.StructArray.from_arrays(parts, fields=list(kind), mask=media.is_null())
    return media
