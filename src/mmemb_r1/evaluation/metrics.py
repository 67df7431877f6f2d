"""Retrieval metrics: pure functions of arrays.

A positive's rank counts every other candidate that scores at least as high: ties are lost, so that an encoder that
gives all inputs the same vector scores at the floor, not at the top.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def ranks(scores: npt.ArrayLike, positives: npt.ArrayLike, *, tolerance: float = 0.0) -> npt.NDArray[np.int64]:
    """Rank of each query's best positive among the candidates, 1 being the top, ties counted against it.

    Args:
        scores: `(Q, C)` floats, higher is better.
        positives: `(Q,)` index of each query's positive, or `(Q, C)` booleans where a query has several.
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
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores have the shape {scores.shape}; allowed: (queries, candidates), at least one of each")
    if not np.isfinite(scores).all():
        row, column = np.argwhere(~np.isfinite(scores))[0]
        raise ValueError(
            f"the score of query {row} and candidate {column} is {scores[row, column]}; it has to be finite"
        )
    mask = _positive_mask(np.asarray(positives), *scores.shape)  # (Q, C)
    best = np.where(mask, scores, -np.inf).max(axis=1, keepdims=True)  # (Q, 1)
    return 1 + ((scores >= best - tolerance) & ~mask).sum(axis=1)


def _positive_mask(positives: npt.NDArray, num_queries: int, num_candidates: int) -> npt.NDArray[np.bool_]:
    if positives.dtype == np.bool_:
        if positives.shape != (num_queries, num_candidates):
            raise ValueError(
                f"boolean positives have the shape {positives.shape}; expected that of the scores, "
                f"({num_queries}, {num_candidates})"
            )
        if not positives.any(axis=1).all():
            raise ValueError(f"query {int(np.argmin(positives.any(axis=1)))} has no positive")
        return positives
    if positives.shape != (num_queries,) or not np.issubdtype(positives.dtype, np.integer):
        raise ValueError(
            f"positives are {positives.dtype} of shape {positives.shape}; expected one index per query, integers of "
            f"shape ({num_queries},)"
        )
    outside = (positives < 0) | (positives >= num_candidates)
    if outside.any():
        query = int(np.argmax(outside))
        raise ValueError(
            f"the positive of query {query} is {positives[query]}; allowed: 0 to {num_candidates - 1}, the candidates"
        )
    return np.arange(num_candidates) == positives[:, None]


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


def cosine_scores(queries: npt.ArrayLike, candidates: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Cosine similarity of each query with each candidate.

    Args:
        queries: `(Q, D)` vectors.
        candidates: `(C, D)` vectors.

    Returns:
        `(Q, C)` float32.

    Raises:
        ValueError: if the shapes do not fit each other, or a vector has no direction (zero, NaN or infinite).

    >>> cosine_scores([[2.0, 0.0]], [[1.0, 0.0], [0.0, 3.0]]).tolist()
    [[1.0, 0.0]]
    """
    left, right = _unit_rows("queries", queries), _unit_rows("candidates", candidates)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"queries have {left.shape[1]} dimensions, candidates {right.shape[1]}; they have to agree")
    return left @ right.T  # (Q, C)


def _unit_rows(name: str, vectors: npt.ArrayLike) -> npt.NDArray[np.float32]:
    values = np.asarray(vectors, dtype=np.float32)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name} have the shape {values.shape}; expected (vectors, dimensions), at least one of each")
    norms = np.linalg.norm(values, axis=1, keepdims=True)  # (N, 1)
    bad = ~np.isfinite(norms) | (norms == 0)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"{name}: vector {row} has the norm {norms[row, 0]}; an embedding has to be finite and not zero"
        )
    return values / norms
