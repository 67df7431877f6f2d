"""Read the Parquet and YAML files that people write and keep: a damaged or odd one is an error that names it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyarrow import Schema, Table

_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "dict": (dict,),
    "None": (type(None),),
}


def read_parquet(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    schema: Schema | None = None,
    hint: str = "Write it again.",
) -> Table:
    """
    Read a Parquet file into memory, and check that what it holds is whole.

    Args:
        path: the file.
        columns: only these. Default: all.
        schema: the columns and types that it has to have. Default: its own.
        hint: what to do about a damaged one, the end of the message.

    Raises:
        ValueError: naming the file, if it is missing, damaged, or lacks a column.
    """
    import pyarrow.parquet

    if not os.path.exists(path):
        raise ValueError(f"{path} can't be read: there is no such file. {hint}")
    with reading_parquet(path, hint):
        there = pyarrow.parquet.read_schema(path).names
        if not (missing := [name for name in columns or () if name not in there]):
            table = pyarrow.parquet.read_table(path, columns=columns, schema=schema)
            table.validate(full=True)  # damaged offsets would end the process later, or give other rows
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}. {hint}")
    return table


@contextmanager
def reading_parquet(path: str | os.PathLike[str], hint: str, kind: str = "Parquet file") -> Iterator[None]:
    """Turn whatever is wrong with a file of Arrow data that is read in the block into a `ValueError` that names it."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} can't be read: it is no {kind}, or a damaged one ({reason:.200}). {hint}") from error


def read_yaml(path: Path) -> Any:
    """
    Read a YAML file, in which no key may be there twice: the first would be dropped without a word.

    Raises:
        ValueError: naming the file and, where it is known, the line. Its text is not repeated: it may be secret.
    """
    import yaml

    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), _unique_keys())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); convert it first") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{path}{where} is no YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date of the 13th month, a number too long
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is no YAML that can be read: it is nested too deeply") from error


def _unique_keys() -> Any:
    import yaml

    class UniqueKeys(yaml.SafeLoader):
        """Refuses a key that is there twice."""

        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    problem = f"the key {key.value!r} is there twice"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
                seen.add(key.value)
            return node

    return UniqueKeys


def check_type(what: str, value: Any, annotation: str) -> None:
    """
    Refuse a value of another type than a field's annotation says, where that is a plain one.

    >>> check_type("temperature", "5e-1", "float | None")
    Traceback (most recent call last):
    ValueError: temperature is '5e-1', of type str; allowed: float | None.
    """
    parts = annotation.split(" | ")
    if any(part not in _TYPES for part in parts):
        return
    if not isinstance(value, tuple(kind for part in parts for kind in _TYPES[part])) or (
        isinstance(value, bool) and "bool" not in parts
    ):
        raise ValueError(f"{what} is {value!r}, of type {type(value).__name__}; allowed: {annotation}.")
