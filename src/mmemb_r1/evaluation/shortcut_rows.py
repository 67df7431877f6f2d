"""What the shortcut test notes of every query: a row each, as Parquet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmemb_r1._files import replaced_file
from mmemb_r1.evaluation.shortcut import INTERVENTIONS, Trials

Columns = dict[str, npt.NDArray[Any]]  # (Q,) each
TEXTS = ("query_id", "cluster", "rationale", "donor")
NUMBERS = (
    "score",
    "num_reasoning_tokens",
    "cosine_between_queries",
    *(f"{kind}_{name}" for kind in ("score", "cosine") for name in INTERVENTIONS),
)


def trials_of(measured: Mapping[str, Columns]) -> Trials:
    """Task -> its columns, as one object."""

    def joined(name: str) -> npt.NDArray[Any]:
        return np.concatenate([columns[name] for columns in measured.values()])

    return Trials(
        task=np.concatenate([np.full(len(columns["score"]), name, object) for name, columns in measured.items()]),
        cluster=joined("cluster"),
        tokens=joined("num_reasoning_tokens"),
        own=joined("score"),
        others=joined("cosine_between_queries"),
        scores={name: joined(f"score_{name}") for name in INTERVENTIONS},
        cosines={name: joined(f"cosine_{name}") for name in INTERVENTIONS},
    )


def write_columns(path: Path, columns: Columns) -> None:
    """Write columns `(Q,)` as Parquet; NaN becomes null."""
    import pyarrow
    import pyarrow.parquet

    arrays = {
        name: pyarrow.array(values, type=pyarrow.string() if name in TEXTS else pyarrow.float64(), from_pandas=True)
        for name, values in columns.items()
    }
    with replaced_file(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(arrays), temporary)


def read_columns(path: Path) -> Columns:
    """
    What `write_columns` wrote.

    Raises:
        ValueError: if the file is damaged or holds something else.
    """
    import pyarrow
    import pyarrow.parquet

    mend = "remove it and run the test again: only this task is measured again"
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} can't be read: {error}; {mend}") from error
    if missing := [name for name in (*TEXTS, *NUMBERS) if name not in table.column_names]:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(table.column_names)}; {mend}")
    return {name: table[name].to_numpy() for name in (*TEXTS, *NUMBERS)}
