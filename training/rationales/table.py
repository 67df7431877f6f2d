"""Read and write the rationales table: a folder of Parquet files, each of them whole or missing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.file_formats import read_parquet
from mmemb_r1.runs import replaced_file
from mmemb_r1.tables.files import open_table

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset


COLUMNS = {
    "pair_id": "string",
    "side": "string",  # query | target
    "worker": "string",
    "sample": "int32",  # number of a rationale among those of one worker for one input, from 0
    "seed": "int64",
    "text": "string",  # null where the worker failed
    "num_tokens": "int32",  # null where the worker failed
    "finish_reason": "string",  # stop (the worker ended it) | length (the budget cut it off) | error (there is none)
    "error": "string",  # why the worker failed, or null
}
ERROR = "error"


def schema() -> pyarrow.Schema:
    """Return the Arrow schema of the table: `COLUMNS`."""
    import pyarrow

    return pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in COLUMNS.items()])


def check_name(name: Any) -> None:
    """Refuse a name of a worker that can't be part of a file's name."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise ValueError(
            f"the name of a worker is {name!r}; allowed: letters, digits, '.', '_' and '-', and it begins with a "
            "letter or a digit."
        )


def rationale_shard_path(folder: Path, worker: str, index: int) -> Path:
    """Return the path of a worker's shard.

    >>> rationale_shard_path(Path("rationales"), "oracle", 7).as_posix()
    'rationales/shards/oracle-00007.parquet'
    """
    return folder / "shards" / f"{worker}-{index:05d}.parquet"


def write_rationale_shard(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows of a shard, possibly none, and replace what was there."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(list(rows), schema=schema())
    with replaced_file(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


def read_rationale_shard(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a shard."""
    return read_parquet(path, schema=schema(), hint="Remove it; it is then drawn again.").to_pylist()


def read_rationales(path: str | os.PathLike[str]) -> Dataset:
    """
    Open a rationales table; a large one is mapped into memory.

    Args:
        path: the folder that `draw_rationales` wrote (finished or not), or a Parquet file with at least its columns.

    Returns:
        The rows, ordered by worker, shard and position in the shard, however many runs drew them.

    Raises:
        ValueError: if there is no such folder or file, or it holds no rationales.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: there is no such folder or file. `mmemb-r1 rationales` writes one.")
    files = sorted((path / "shards").glob("*.parquet"), key=_worker_and_index) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no shards of rationales. `mmemb-r1 rationales` draws them.")
    table = open_table(files)
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise ValueError(
            f"{path} has no column {missing[0]!r}; a rationales table has the columns {', '.join(COLUMNS)}."
        )
    return table


def _worker_and_index(file: Path) -> tuple[str, int]:
    """
    >>> _worker_and_index(Path("shards/instruct-2b-00012.parquet"))
    ('instruct-2b', 12)
    """
    worker, _, index = file.stem.rpartition("-")
    return worker, int(index)
