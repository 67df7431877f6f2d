"""
Ranks, and the means over queries that follow from them.

A positive's rank counts every other candidate that scores at least as high: ties are lost, so that an encoder that
gives all inputs the same vector scores at the floor, not at the top.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.metrics.score_rows import Rows, check_alike, check_finite, padded, rows_of


def ranks(scores: Rows, positives: Rows, *, tolerance: float = 0.0) -> npt.NDArray[np.int64]:
    """Rank of each query's best positive among the candidates, 1 being the top, ties counted against it.

    Args:
        scores: `(Q, C)` floats, or Q rows `(C_q,)` where each query has its own candidates. Higher is better.
        positives: `(Q,)` index of each query's positive, or booleans of the scores' shape where a query has several.
        tolerance: scores that differ by no more than this are a tie; defaults to 0. Products of equal vectors can
            differ in their last bits, so scores that come out of one need about 1e-6.

    Returns:
        `(Q,)` ranks from 1 to C. A query's other positives do not push its best one down.

    Raises:
        ValueError: if there is no query or no candidate, a score is NaN or infinite, the shapes do not fit each other,
            an index is outside the candidates, or a query has no positive.

    >>> ranks([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5]], [0, 2]).tolist()
    [1, 2]
    >>> ranks([[0.5, 0.5, 0.5]], [0]).tolist()  # a collapsed encoder
    [3]
    >>> ranks([[0.9, 0.8, 0.7]], [[False, True, True]]).tolist()
    [2]
    """
    rows = rows_of("scores", scores)
    table, there = padded(rows)  # (Q, C)
    check_finite("score", table)
    mask = _positive_mask(positives, rows)
    best = np.where(mask, table, -np.inf).max(axis=1, keepdims=True)  # (Q, 1)
    return 1 + ((table >= best - tolerance) & there & ~mask).sum(axis=1)


def _positive_mask(positives: Rows, scores: list[npt.NDArray]) -> npt.NDArray[np.bool_]:
    """`(Q, C)` where the positives are, C being the number of candidates of the query that has most."""
    if np.ndim(next(iter(positives), 0)):
        rows = rows_of("positives", positives)
        check_alike("the mask of positives", rows, scores)
        if any(row.dtype != np.bool_ for row in rows):
            raise ValueError(f"positives are {rows[0].dtype} rows; allowed: rows of booleans, or one index per query")
        mask = padded(rows)[0] > 0
        if not mask.any(axis=1).all():
            raise ValueError(f"query {int(np.argmin(mask.any(axis=1)))} has no positive")
        return mask
    num_candidates = np.array([row.size for row in scores])
    index = np.asarray(positives)
    if index.shape != num_candidates.shape or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(
            f"positives are {index.dtype} of shape {index.shape}; expected one index per query, integers of shape "
            f"{num_candidates.shape}"
        )
    outside = (index < 0) | (index >= num_candidates)
    if outside.any():
        query = int(np.argmax(outside))
        raise ValueError(
            f"the positive of query {query} is {index[query]}; allowed: 0 to {num_candidates[query] - 1}, candidates"
        )
    return np.arange(num_candidates.max()) == index[:, None]


def hit_at_k(ranks: npt.ArrayLike, k: int = 1) -> float:
    """Share of queries whose positive is among the first `k`.

    Args:
        ranks: `(Q,)` ranks from 1, at least one.
        k: at least 1; defaults to 1.

    >>> hit_at_k([1, 2, 5, 1])
    0.5
    >>> hit_at_k([1, 2, 5, 1], k=2)
    0.75
    """
    if k < 1:
        raise ValueError(f"k is {k}; it has to be at least 1")
    return float((_checked(ranks) <= k).mean())


def mrr(ranks: npt.ArrayLike) -> float:
    """Mean reciprocal rank of `(Q,)` ranks from 1, at least one.

    >>> mrr([1, 2, 4])
    0.5833333333333334
    """
    return float((1 / _checked(ranks)).mean())


def _checked(ranks: npt.ArrayLike) -> npt.NDArray:
    values = np.asarray(ranks)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"ranks have the shape {values.shape}; expected (queries,), at least one query")
    if not (values >= 1).all():  # also false for NaN
        raise ValueError(f"the lowest rank is {values.min()}; ranks start at 1")
    return values
