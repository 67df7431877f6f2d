"""Means over tasks of columns of numbers, with those of draws of whole clusters of queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.adaptivity.answers import Answers, Floats
from mmemb_r1.evaluation.statistics import Interval, bootstrap_means, interval_of


def drawn_means(columns: dict[str, npt.NDArray[Any]], answers: Answers, seed: int) -> dict[str, Floats]:
    """Per column `(1 + S,)`: its mean over tasks, then that of every draw."""
    values = np.stack([column.astype(np.float64) for column in columns.values()], axis=1)  # (N, K)
    mean, draws = bootstrap_means(values, answers.cluster.tolist(), answers.task.tolist(), seed=seed)
    return dict(zip(columns, np.concatenate([mean[None], draws]).T, strict=True))


def interval(values: Floats) -> Interval:
    """The mean `(1 + S,)` begins with, with the interval of the draws behind it."""
    return interval_of(float(values[0]), values[1:])


def coin(means: dict[str, Floats], ratio: float) -> Floats:
    """Expected scores `(1 + S,)` if every query thought with the probability `ratio`."""
    return ratio * means["always"] + (1 - ratio) * means["never"]
