"""The gate against the utility gap: does it think where thinking pays?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.adaptivity.answers import Answers, Floats
from mmemb_r1.evaluation.statistics import Interval, cluster_draws, interval_of, numbered

LEAST_GAP = 0.1  # of the utility gap's size, for the gate to be judged by its sign


class GateQuality(NamedTuple):
    """
    The gate against the sign of the true utility gap.

    Attributes:
        auc: area under the ROC curve over the queries that count. `None` if these are all of one sign.
        share: of the queries whose gap is known, those that count.
        queries: how many count.
    """

    auc: Interval | None
    share: float
    queries: int


def gate_quality(answers: Answers, least_gap: float = LEAST_GAP, *, seed: int = 0) -> GateQuality | None:
    """
    How well the gate's probability tells whether thinking pays, where that matters.

    Args:
        answers: N queries, with `gate_prob`.
        least_gap: size from which a gap counts. Default: 0.1.
        seed: of the bootstrap.

    Returns:
        `None` if no query's gap is known.

    Raises:
        ValueError: if the model has no gate.
    """
    gate, gap = answers.gate(), answers.gap()
    known = ~np.isnan(gap)
    if not known.any():
        return None
    counted = known & (np.abs(np.where(known, gap, 0)) >= least_gap)
    scores, pays = gate[counted].astype(np.float64), gap[counted] > 0
    share, queries = float(counted.sum() / known.sum()), int(counted.sum())
    if not pays.any() or pays.all():
        return GateQuality(None, share, queries)
    cluster = numbered(answers.cluster.tolist())
    draws = [
        auc(scores, pays, drawn[:, cluster[counted]])
        for drawn in cluster_draws(int(cluster.max()) + 1, seed=seed, columns=queries)
    ]
    return GateQuality(interval_of(float(auc(scores, pays)[0]), np.concatenate(draws)), share, queries)


def auc(scores: npt.ArrayLike, positive: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Floats:
    """
    Area under the ROC curve: how often a positive scores above a negative, ties counting half.

    Args:
        scores: `(N,)`.
        positive: `(N,)` booleans.
        weights: `(D, N)`: how often each entry counts, in each of D cases. Default: once, in one case.

    Returns:
        `(D,)`, NaN where there is no positive or no negative.

    >>> auc([0.9, 0.5, 0.5, 0.1], [True, True, False, False]).tolist()
    [0.875]
    """
    values, signs = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=np.bool_)
    times = np.ones((1, len(values))) if weights is None else np.asarray(weights, dtype=np.float64)
    if not values.shape == signs.shape == times.shape[1:] or not len(values):
        raise ValueError(
            f"got scores {values.shape}, signs {signs.shape} and weights {times.shape}; expected (N,), (N,) and (D, N)"
        )
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf) > 0)  # (L,) where a new level of scores begins
    up, down = (
        np.add.reduceat(times[:, order] * part[order], starts, axis=1) for part in (signs, ~signs)
    )  # (D, L) each
    below = np.cumsum(down, axis=1) - down / 2
    pairs = up.sum(axis=1) * down.sum(axis=1)
    return np.divide((up * below).sum(axis=1), pairs, out=np.full(len(times), np.nan), where=pairs > 0)
