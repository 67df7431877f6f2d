"""Columns `(Q,)` as Parquet, a row per query: written whole or not at all, read with errors that say how to mend."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from mmemb_r1._files import replaced_file

if TYPE_CHECKING:
    from pyarrow import Table

Columns = dict[str, npt.NDArray[Any]]  # name -> (Q,)


def write_columns(path: Path, columns: Columns, kinds: Mapping[str, str]) -> None:
    """Write the columns that `kinds` names, each with its type in the words of Arrow; NaN becomes null."""
    import pyarrow
    import pyarrow.parquet

    arrays = {
        name: pyarrow.array(columns[name], type=pyarrow.type_for_alias(kind), from_pandas=True)
        for name, kind in kinds.items()
    }
    with replaced_file(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(arrays), temporary)


def read_table(path: str | os.PathLike[str], names: Iterable[str], mend: str) -> Table:
    """
    What [`write_columns`] wrote.

    Args:
        path: of the file.
        names: columns that it has to have.
        mend: what to do if it can't be used, for errors.

    Raises:
        ValueError: if the file is missing or damaged, or lacks a column.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} can't be read: {error}; {mend}") from error
    if missing := [name for name in names if name not in table.column_names]:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(table.column_names)}; {mend}")
    return table
