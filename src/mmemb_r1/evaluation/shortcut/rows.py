"""What the shortcut test notes of every query: a row each, as Parquet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.run.columns import Columns, read_table, write_columns
from mmemb_r1.evaluation.shortcut.figures import INTERVENTIONS, Trials

TEXTS = ("query_id", "cluster", "rationale", "donor")
NUMBERS = (
    "score",
    "num_reasoning_tokens",
    "cosine_between_queries",
    *(f"{kind}_{name}" for kind in ("score", "cosine") for name in INTERVENTIONS),
)
KINDS = {**dict.fromkeys(TEXTS, "string"), **dict.fromkeys(NUMBERS, "float64")}  # their types in the words of Arrow
MEND = "remove it and run the test again: only this task is measured again"


def write_trials(path: Path, columns: Columns) -> None:
    """Write columns `(Q,)` as Parquet; NaN becomes null."""
    write_columns(path, columns, KINDS)


def read_trials(path: Path) -> Columns:
    """
    What `write_trials` wrote.

    Raises:
        ValueError: if the file is damaged or holds something else.
    """
    table = read_table(path, KINDS, MEND)
    return {name: table[name].to_numpy() for name in KINDS}


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
