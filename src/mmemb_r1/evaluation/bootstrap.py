"""Intervals for means over rows that are not independent of each other."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Interval(NamedTuple):
    """
    A mean and the interval around it.

    Attributes:
        mean: of the rows as they are.
        low: lower end of the interval.
        high: upper end.
    """

    mean: float
    low: float
    high: float


def clustered_bootstrap(
    values: npt.ArrayLike,
    clusters: Sequence[Hashable],
    tasks: Sequence[Hashable] | None = None,
    *,
    num_samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """
    Mean of rows that come in clusters, with a percentile interval from drawing whole clusters with replacement.

    A cluster's rows (say, all questions about one country) are right or wrong together, so there is less to learn from
    them than from as many independent ones; intervals that draw rows are too narrow. For the difference of two models
    on the same queries, pass the differences.

    Args:
        values: `(N,)` finite numbers, say hits, or differences of hits, averaged over seeds.
        clusters: `(N,)` names of what the rows are about.
        tasks: `(N,)`: what is estimated is then the mean over tasks of the means over their rows, however many rows
            each has. A draw in which a task has no rows is averaged over the others. Default: one task.
        num_samples: draws. Default: 2000.
        seed: of the draws.
        level: share of the draws that lie inside. Default: 0.95.

    Returns:
        The mean and both ends. With a single cluster nothing varies, and both ends are the mean: that says nothing
        about how far off it is.

    Raises:
        ValueError: if there are no rows, the lengths differ, a value is not finite, or an option is out of its range.

    >>> clustered_bootstrap([1.0, 1.0, 1.0, 0.0], ["fr", "fr", "de", "de"])
    Interval(mean=0.75, low=0.5, high=1.0)
    >>> clustered_bootstrap([1.0, 1.0, 1.0, 0.0], ["fr", "fr", "fr", "fr"], ["capital", "capital", "tld", "region"])
    Interval(mean=0.6666666666666666, low=0.6666666666666666, high=0.6666666666666666)
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 1 or rows.size == 0:
        raise ValueError(f"values have the shape {rows.shape}; expected (rows,), at least one row")
    if not np.isfinite(rows).all():
        row = int(np.argmin(np.isfinite(rows)))
        raise ValueError(f"the value of row {row} is {rows[row]}; it has to be finite")
    tasks = [""] * len(rows) if tasks is None else tasks
    if not len(rows) == len(clusters) == len(tasks):
        raise ValueError(f"got {len(rows)} values, {len(clusters)} clusters and {len(tasks)} tasks; each row has one")
    if num_samples < 1 or not 0 < level < 1:
        raise ValueError(f"num_samples={num_samples}, level={level}; allowed: at least 1, and between 0 and 1")
    cluster, task = _numbered(clusters), _numbered(tasks)
    shape = cluster.max() + 1, task.max() + 1
    sums, counts = np.zeros(shape), np.zeros(shape)  # (C, T)
    np.add.at(sums, (cluster, task), rows)
    np.add.at(counts, (cluster, task), 1.0)
    # how often each cluster is drawn, (S, C): all of its rows go along
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), size=num_samples).astype(np.float64)
    means = _mean_over_tasks(drawn @ sums, drawn @ counts)  # (S,)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    mean = _mean_over_tasks(sums.sum(axis=0, keepdims=True), counts.sum(axis=0, keepdims=True))
    return Interval(float(mean[0]), float(low), float(high))


def _mean_over_tasks(sums: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """`(S,)` means of the means of the tasks that have rows, from their sums and counts `(S, T)`."""
    there = counts > 0
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=there)
    return means.sum(axis=1) / there.sum(axis=1)


def _numbered(names: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """
    `(N,)` numbers from 0, equal where names are.

    >>> _numbered(["fr", "de", "fr"]).tolist()
    [0, 1, 0]
    """
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names])
