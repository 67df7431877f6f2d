"""Cosine similarities of vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


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
    left, right = unit_rows("queries", queries), unit_rows("candidates", candidates)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"queries have {left.shape[1]} dimensions, candidates {right.shape[1]}; they have to agree")
    return left @ right.T  # (Q, C)


def unit_rows(name: str, vectors: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """
    Vectors `(N, D)` of length 1, so that their products are cosines.

    Args:
        name: what they are, for errors.
        vectors: `(N, D)`.

    Raises:
        ValueError: if there is none, or one has no direction (zero, NaN or infinite).

    >>> unit_rows("queries", [[0.0, 4.0]]).tolist()
    [[0.0, 1.0]]
    """
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
