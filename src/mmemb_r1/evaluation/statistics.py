"""Compute means with intervals, and differences of means, over queries that come in clusters."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

NUM_SAMPLES = 2000
_CELLS = 2**23  # of a table of draws that is held at a time, 64 MiB
_MANY = 10_000  # clusters from which on drawing them one by one is ten times faster than how often each is drawn


class Interval(NamedTuple):
    """Holds a mean of rows as they are, and the ends of the interval around it."""

    mean: float
    low: float
    high: float


def clustered_bootstrap(
    values: npt.ArrayLike,
    clusters: Sequence[Hashable],
    tasks: Sequence[Hashable] | None = None,
    *,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """
    Average rows that come in clusters, with a percentile interval from drawing whole clusters with replacement.

    A cluster's rows (say, all questions about one country) are right or wrong together: intervals that draw rows are
    too narrow. For the difference of two models on the same queries, pass the differences.

    Tasks that share clusters, directly or by way of others, are drawn together: a country that is drawn comes with its
    rows in all of them. Tasks that share none are drawn apart, each as many clusters as it has, so that every draw is
    of the same tasks. Where tasks share clusters and a draw has none of a task's, its own are drawn once more, for it
    alone [ours].

    Args:
        values: `(N,)` finite numbers, say hits, or differences of hits, averaged over seeds.
        clusters: `(N,)` names of what the rows are about.
        tasks: `(N,)`: what is estimated is then the mean over tasks of the means over their rows. Default: one task.
        num_samples, seed: draws, and their seed. Default: 2000, 0.
        level: share of the draws that lie inside. Default: 0.95.

    Returns:
        The mean and both ends. With a single cluster nothing varies: both ends are the mean, and tell nothing.

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
    mean, draws = bootstrap_means(rows[:, None], clusters, tasks, num_samples=num_samples, seed=seed)
    return interval_of(float(mean[0]), draws[:, 0], level)


def clustered_means(
    columns: Mapping[str, npt.ArrayLike],
    clusters: Sequence[Hashable],
    tasks: Sequence[Hashable] | None = None,
    *,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """
    Average several columns as [`clustered_bootstrap`] does, the same clusters being drawn for all: name -> interval.

    >>> found = clustered_means({"hit": [1.0, 0.0], "tokens": [5, 5]}, ["fr", "de"])
    >>> found["hit"].mean, found["tokens"]
    (0.5, Interval(mean=5.0, low=5.0, high=5.0))
    """
    values = np.stack([np.asarray(column, dtype=np.float64) for column in columns.values()], axis=1)  # (N, K)
    means, draws = bootstrap_means(values, clusters, tasks, num_samples=num_samples, seed=seed)
    intervals = [interval_of(float(mean), drawn) for mean, drawn in zip(means, draws.T, strict=True)]
    return dict(zip(columns, intervals, strict=True))


def bootstrap_means(
    values: npt.ArrayLike,
    clusters: Sequence[Hashable],
    tasks: Sequence[Hashable] | None = None,
    *,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """
    Average several columns `(N, K)`, and every draw of them; arguments and errors as in [`clustered_bootstrap`].

    Returns `(K,)` means of the rows as they are, and `(S, K)` of the draws, with the same clusters for all columns.

    >>> mean, draws = bootstrap_means([[1.0, 2.0], [0.0, 2.0]], ["fr", "de"], num_samples=4)
    >>> mean.tolist(), draws.shape
    ([0.5, 2.0], (4, 2))
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"values have the shape {rows.shape}; expected (rows, columns), at least one of each")
    if not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0]
        raise ValueError(f"the value of row {row} is {rows[row, column]}; it has to be finite")
    tasks = [""] * len(rows) if tasks is None else tasks
    if not len(rows) == len(clusters) == len(tasks):
        raise ValueError(f"got {len(rows)} values, {len(clusters)} clusters and {len(tasks)} tasks; each row has one")
    cluster, task = number_names(clusters), number_names(tasks)
    number = int(cluster.max()) + 1
    # a part is what a cluster has in a task; parts are in order of their tasks
    keys, part = np.unique(task * number + cluster, return_inverse=True)
    sums = np.zeros((len(keys), rows.shape[1]))  # (P, K)
    np.add.at(sums, part, rows)
    counts = np.bincount(part).astype(np.float64)  # (P,)
    starts = np.flatnonzero(np.diff(keys // number, prepend=-1))  # (T,)

    again = np.random.default_rng([seed, 1])  # a stream of its own

    def means(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Average over tasks `(D, K)`, given how often each part is drawn, `(D, P)`."""
        total = np.zeros((len(weights), rows.shape[1]))
        for start, end in zip(starts, [*starts[1:], len(keys)], strict=True):
            own = weights[:, start:end]
            if len(absent := np.flatnonzero(~own.any(axis=1))):
                own = own.copy()
                own[absent] = again.multinomial(end - start, np.full(end - start, 1 / (end - start)), len(absent))
            total += (own @ sums[start:end]) / (own @ counts[start:end])[:, None]
        return total / len(starts)

    strata = linked(keys % number, keys // number)
    drawn = cluster_draws(number, num_samples, seed, columns=len(keys), strata=strata)
    draws = [means(times[:, keys % number]) for times in drawn]
    return means(np.ones((1, len(keys))))[0], np.concatenate(draws)


def linked(clusters: npt.NDArray[np.int64], tasks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """
    Find which clusters belong together: those of one task do, and those of two tasks that share one.

    Takes `(P,)` numbers from 0, a cluster and a task that it is in, each pair once. Returns `(C,)` per cluster the
    lowest one that it belongs together with.

    >>> linked(np.array([0, 1, 1, 2, 3]), np.array([0, 0, 1, 1, 2])).tolist()
    [0, 0, 0, 3]
    """
    of_cluster = np.arange(int(clusters.max()) + 1)
    while True:
        of_task = np.full(int(tasks.max()) + 1, len(of_cluster))
        np.minimum.at(of_task, tasks, of_cluster[clusters])
        spread = of_cluster.copy()
        np.minimum.at(spread, clusters, of_task[tasks])
        if (spread == of_cluster).all():
            return spread
        of_cluster = spread


def cluster_draws(
    num_clusters: int,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
    *,
    columns: int | None = None,
    strata: npt.NDArray[np.int64] | None = None,
) -> Iterator[npt.NDArray[np.float64]]:
    """
    Draw clusters: yield how often each is drawn, float64 `(D, num_clusters)`, some draws at a time.

    Args:
        num_clusters, num_samples: at least 1 each.
        seed: of the draws, which don't depend on how many come at a time.
        columns: of the widest table that is made of a draw. Default: `num_clusters`.
        strata: `(num_clusters,)`: as many clusters of every stratum are drawn as it has. Default: all are of one.

    Raises:
        ValueError: if a number is below 1.

    >>> [drawn.sum(axis=1).tolist() for drawn in cluster_draws(3, num_samples=2)]
    [[3.0, 3.0]]
    >>> [drawn[:, :2].sum(axis=1).tolist() for drawn in cluster_draws(3, num_samples=2, strata=np.array([0, 0, 1]))]
    [[2.0, 2.0]]
    """
    if num_clusters < 1 or num_samples < 1:
        raise ValueError(f"num_clusters={num_clusters}, num_samples={num_samples}; allowed: at least 1 of each")
    rng = np.random.default_rng(seed)
    size = max(1, _CELLS // max(num_clusters, columns or 1))
    even = np.full(num_clusters, 1 / num_clusters)
    strata = None if strata is None or (strata == strata[0]).all() else strata
    for start in range(0, num_samples, size):
        number = min(size, num_samples - start)
        if strata is not None:
            yield _stratified_draws(rng, number, strata)
        elif num_clusters < _MANY:
            yield rng.multinomial(num_clusters, even, size=number).astype(np.float64)
        else:
            drawn = rng.integers(num_clusters, size=(number, num_clusters), dtype=np.int32)
            yield np.stack([np.bincount(row, minlength=num_clusters) for row in drawn]).astype(np.float64)


def _stratified_draws(rng: np.random.Generator, number: int, strata: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Count how often each cluster is drawn, as many of a stratum as it has: `(number, C)`."""
    order = np.argsort(strata, kind="stable")  # (C,): those of a stratum side by side
    ordered = strata[order]
    low = np.searchsorted(ordered, ordered)  # (C,): where the stratum of each place begins
    size = np.searchsorted(ordered, ordered, "right") - low
    # twice as fast as integers between two bounds; a number below 1 times a size is never rounded up to that size
    places = (rng.random((number, len(order))) * size).astype(np.int64) + low
    drawn = np.empty((number, len(order)))
    for row, chosen in enumerate(places):
        drawn[row, order] = np.bincount(chosen, minlength=len(order))
    return drawn


def interval_of(mean: float, draws: npt.NDArray[np.float64], level: float = 0.95) -> Interval:
    """
    Find the percentile interval of draws `(S,)` around `mean`; draws that are NaN are left out.

    Raises:
        ValueError: if the level is not between 0 and 1, or every draw is NaN.

    >>> interval_of(0.5, np.array([0.0, 0.5, 1.0, np.nan]), level=0.5)
    Interval(mean=0.5, low=0.25, high=0.75)
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}; allowed: between 0 and 1")
    known = draws[~np.isnan(draws)]
    if not known.size:
        raise ValueError(f"none of the {len(draws)} draws has a value")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def number_names(names: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """
    Number names `(N,)` from 0; equal names get equal numbers.

    >>> number_names(["fr", "de", "fr"]).tolist()
    [0, 1, 0]
    """
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names])


NUM_PAIRED_SAMPLES = 5000
ROUNDING = 1e-12  # means of draws that differ by no more are equal
Floats = npt.NDArray[np.float64]


class Difference(NamedTuple):
    """
    Holds what B gains over A.

    Attributes:
        a, b: mean scores.
        difference: b minus a, with its 95 % interval.
        above, below: shares of the draws in which it is above and below zero.
        p: two-sided p value, see `two_sided_p`.
        n, clusters: how many queries, and clusters of them.
    """

    a: float
    b: float
    difference: Interval
    above: float
    below: float
    p: float
    n: int
    clusters: int


def paired_difference(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    clusters: Sequence[str],
    tasks: Sequence[str] | None = None,
    *,
    num_samples: int = NUM_PAIRED_SAMPLES,
    seed: int = 0,
) -> Difference:
    """
    Compare scores of the same queries by drawing whole clusters of them with replacement.

    Args:
        a, b: `(N,)` scores.
        clusters, tasks, seed: as in [`clustered_bootstrap`]; so are the errors.
        num_samples: draws; p is at least 2 / (num_samples + 1). Default: 5000.

    >>> found = paired_difference([0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], ["fr", "de", "it", "es"])
    >>> found.a, found.b, found.difference.mean, found.below
    (0.25, 1.0, 0.75, 0.0)
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    columns = np.stack([first, second, second - first], axis=1)  # (N, 3)
    means, draws = bootstrap_means(columns, clusters, tasks, num_samples=num_samples, seed=seed)
    differences = draws[:, 2]
    return Difference(
        a=float(means[0]),
        b=float(means[1]),
        difference=interval_of(float(means[2]), differences),
        above=float((differences > ROUNDING).mean()),
        below=float((differences < -ROUNDING).mean()),
        p=two_sided_p(differences),
        n=len(first),
        clusters=len(set(clusters)),
    )


def two_sided_p(draws: Floats) -> float:
    """
    Double the share of `(S,)` draws on the rarer side of zero, zero being on both; one more is counted, so that p > 0.

    >>> two_sided_p(np.array([-0.1, 0.2, 0.3, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8]))
    0.4
    >>> two_sided_p(np.zeros(9))
    1.0
    """
    rarer = min((draws <= ROUNDING).sum(), (draws >= -ROUNDING).sum())
    return float(min(2 * (1 + rarer) / (len(draws) + 1), 1.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """
    Correct p values of several comparisons, so that the chance of one false alarm among all is kept (Holm 1979).

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    scaled = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(scaled, 1.0)
    return corrected.tolist()
