"""Reading the tables that the stages exchange."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset


def read_pairs(path: Path) -> Dataset:
    """
    A pairs table from a Parquet file, in memory.

    Args:
        path: the file. Columns that `datasets` wrote as pictures are decoded when a row is read; others (paths, bytes)
            are opened by the collator, with the same rules as in `encode`.

    Raises:
        ValueError: if the file holds no table.
    """
    import pyarrow.lib
    import pyarrow.parquet

    try:
        return Dataset(pyarrow.parquet.read_table(path))
    except pyarrow.lib.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file ({error}).") from error
