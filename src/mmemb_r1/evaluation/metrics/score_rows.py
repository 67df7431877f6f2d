"""Rows of numbers, one per query: equally long, or each as long as its query has candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray | Sequence[npt.ArrayLike]  # (Q, C), or Q rows (C_q,)


def rows_of(name: str, values: Rows) -> list[npt.NDArray]:
    """
    One row `(C_q,)` per query.

    Args:
        name: what the values are, for errors.
        values: `(Q, C)`, or Q rows `(C_q,)` where each query has its own candidates.

    Raises:
        ValueError: if there is no query, or one has no row of candidates.

    >>> [row.shape for row in rows_of("scores", [[0.5, 0.25], [0.75]])]
    [(2,), (1,)]
    """
    shape = tuple(values.shape) if hasattr(values, "shape") else (len(values),)
    if 0 in shape or (hasattr(values, "shape") and len(shape) != 2):
        raise ValueError(f"{name}: the shape is {shape}; allowed: (queries, candidates), at least one of each")
    rows = [np.asarray(row) for row in values]
    for query, row in enumerate(rows):
        if row.ndim != 1 or not row.size:
            raise ValueError(
                f"{name} of query {query}: the shape is {row.shape}; allowed: (candidates,), at least one candidate"
            )
    return rows


def check_alike(name: str, rows: Sequence[npt.NDArray], scores: Sequence[npt.NDArray]) -> None:
    """
    Refuses rows that are not as many, and each as long, as those of the scores.

    >>> check_alike("relevance", [np.zeros(2), np.zeros(3)], [np.zeros(2), np.zeros(2)])
    Traceback (most recent call last):
        ...
    ValueError: relevance of query 1 is given for 3 candidates; expected as many as there are scores, 2
    """
    if len(rows) != len(scores):
        raise ValueError(
            f"{name} is given for {len(rows)} queries; expected as many as there are scores of, {len(scores)}"
        )
    for query, (row, score) in enumerate(zip(rows, scores, strict=True)):
        if row.size != score.size:
            raise ValueError(
                f"{name} of query {query} is given for {row.size} candidates; expected as many as there are scores, "
                f"{score.size}"
            )


def padded(rows: Sequence[npt.NDArray]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """
    Rows as one table `(Q, C)`, C being the longest: zeros stand behind the end of the others. And where they do not.

    >>> padded([np.array([0.5, 0.25]), np.array([0.75])])
    (array([[0.5 , 0.25],
           [0.75, 0.  ]]), array([[ True,  True],
           [ True, False]]))
    """
    lengths = np.array([row.size for row in rows])
    there = np.arange(lengths.max()) < lengths[:, None]
    table = np.zeros(there.shape)
    table[there] = np.concatenate(rows)
    return table, there


def check_finite(what: str, table: npt.NDArray[np.float64], *, first: int = 0, lowest: float = -np.inf) -> None:
    """
    Refuses what is NaN, infinite or below `lowest`, by the number of its query (that of row 0 being `first`).

    >>> check_finite("grade", np.array([[0.0, 1.0], [0.0, -1.0]]), lowest=0)
    Traceback (most recent call last):
        ...
    ValueError: the grade of query 1 and candidate 1 is -1.0; it has to be finite and at least 0
    """
    good = np.isfinite(table) & (table >= lowest)
    if not good.all():
        query, candidate = np.argwhere(~good)[0]
        limit = "" if lowest == -np.inf else f" and at least {lowest:g}"
        raise ValueError(
            f"the {what} of query {first + query} and candidate {candidate} is {table[query, candidate]}; it has to "
            f"be finite{limit}"
        )
