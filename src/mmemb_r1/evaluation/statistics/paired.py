"""Scores of the same queries, compared query by query: is the difference more than chance? Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.statistics.bootstrap import Interval, bootstrap_means, interval_of

NUM_SAMPLES = 5000
ROUNDING = 1e-12  # means of draws that differ by no more are equal
Floats = npt.NDArray[np.float64]


class Difference(NamedTuple):
    """
    What B gains over A.

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
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
) -> Difference:
    """
    Compare scores of the same queries by drawing whole clusters of them with replacement.

    Args:
        a, b: `(N,)` scores.
        clusters: `(N,)` what the queries are about.
        tasks: `(N,)`: every task then has the same weight. Default: one task.
        num_samples: draws; p is at least 2 / (num_samples + 1). Default: 5000.
        seed: of the draws.

    Raises:
        ValueError: as `clustered_bootstrap`.

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
    Twice the share of `(S,)` draws on the rarer side of zero, zero being on both; 1 at most. One more draw than there
    are is counted there, so that p is never 0.

    >>> two_sided_p(np.array([-0.1, 0.2, 0.3, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8]))
    0.4
    >>> two_sided_p(np.zeros(9))
    1.0
    """
    rarer = min((draws <= ROUNDING).sum(), (draws >= -ROUNDING).sum())
    return float(min(2 * (1 + rarer) / (len(draws) + 1), 1.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """
    P values of several comparisons, corrected so that the chance of one false alarm among all is kept (Holm 1979).

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    scaled = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(scaled, 1.0)
    return corrected.tolist()
