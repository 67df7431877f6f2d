"""What a run keeps of every query of a task in a mode: a row each."""

from __future__ import annotations

import os
from pathlib import Path

from mmemb_r1.evaluation.run.columns import Columns, read_table, write_columns

AGAIN = "remove the file of the same name that ends in .json and evaluate again: only what it held is measured again"
COLUMNS: dict[str, str] = {  # of the rows: their types in the words of Arrow
    "query_id": "string",
    "cluster": "string",
    "score": "float64",
    "rank": "int64",
    "margin": "float64",
    "alignment": "float64",
    "gate_prob": "float64",
    "reasoned": "bool",
    "num_reasoning_tokens": "int64",
    "num_reasoning_rounds": "int64",
    "rationale": "string",
    "query_text": "string",
}
WHOLE = ("query_id", "cluster", "score", "rank", "alignment", "reasoned", "num_reasoning_tokens")  # of every query


def rows_path(run: str | os.PathLike[str], task: str, mode: str) -> Path:
    """
    The file with a row per query.

    Raises:
        ValueError: if the names would lead out of the run's folder.
    """
    for name in (task, mode):
        if Path(name).name != name or name == "..":
            raise ValueError(f"{name!r} can't be the name of a file or a folder; allowed: names without / and ..")
    return Path(run) / "tasks" / task / f"{mode}.parquet"


def numbers_path(run: str | os.PathLike[str], task: str, mode: str) -> Path:
    """The file with the means over a task's queries in a mode. If it is there, the task is measured in that mode."""
    return rows_path(run, task, mode).with_suffix(".json")


def write_rows(path: Path, rows: Columns) -> None:
    """Write columns `(Q,)` as Parquet; NaN becomes null."""
    write_columns(path, rows, COLUMNS)


def read_rows(path: str | os.PathLike[str]) -> Columns:
    """
    What [`write_rows`] wrote: name -> column `(Q,)`. Null is NaN among numbers, `None` among texts.

    Raises:
        ValueError: if the file is missing or damaged, has other columns, no rows or a query twice, or lacks what
            every query has.
    """
    table = read_table(path, COLUMNS, AGAIN)
    if not table.num_rows:
        raise ValueError(f"{path} has no rows; {AGAIN}")
    for name in WHOLE:
        if empty := table[name].null_count:
            raise ValueError(f"{path}: {empty} of {table.num_rows} rows have no {name}; {AGAIN}")
    rows = {name: table[name].to_numpy() for name in COLUMNS}
    if len(set(rows["query_id"])) < table.num_rows:
        raise ValueError(f"{path} holds a query twice; {AGAIN}")
    return rows
