"""Hold what a search found, and order it: fusion of two rankings, and variety among the hits."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

RANK_CONSTANT = 60  # of reciprocal rank fusion, as in its paper


@dataclass
class Hit:
    """
    One item that was found.

    Attributes:
        id: its name in the source.
        score: cosine of the query's and the item's vectors, in full precision.
        path: of its file; an absolute one where the source is a folder.
        kind: `"image"`, `"video"`, `"page"` or `"text"`.
        page: of a PDF, counted from 1.
        text: of a text or page, or the column of a table.
        metadata: other columns of the table.
        thumbnail: a JPEG of at most 256 pixels a side; `None` of a text.
    """

    id: str
    score: float
    path: str | None
    kind: str
    page: int | None
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    thumbnail: bytes | None = field(default=None, repr=False)

    @property
    def thumbnail_url(self) -> str | None:
        """Get the thumbnail as a data URL, for pages of HTML."""
        return None if self.thumbnail is None else f"data:image/jpeg;base64,{b64encode(self.thumbnail).decode()}"


@dataclass
class SearchResult:
    """
    What was found for one query, the best first.

    Attributes:
        hits: at most k.
        gate_prob: what the gate said of the query.
        reasoned: whether the query was reasoned about.
        rationale: what was thought; `""` if nothing.
        num_reasoning_tokens: how many tokens that took.
        seconds: of embedding and search; of several queries at once, the mean.
    """

    hits: list[Hit]
    gate_prob: float
    reasoned: bool
    rationale: str
    num_reasoning_tokens: int
    seconds: float


def fused(rankings: Iterable[Sequence[Hashable]]) -> list[Any]:
    """
    Merge rankings by reciprocal rank fusion (Cormack, Clarke and Buettcher, 2009): an item's score is the sum of
    1 / (60 + its rank) over the rankings that have it. Equal scores keep the order in which items come first.

    >>> fused([["a", "b", "c"], ["c", "a"]])
    ['a', 'c', 'b']
    """
    scores: dict[Hashable, float] = {}
    for ranking in rankings:
        for rank, name in enumerate(ranking, start=1):
            scores[name] = scores.get(name, 0.0) + 1 / (RANK_CONSTANT + rank)
    return sorted(scores, key=lambda name: -scores[name])


def varied(scores: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], k: int, relevance: float) -> list[int]:
    """
    Choose rows by maximal marginal relevance (Carbonell and Goldstein, 1998): each is the one with the largest
    `relevance * score - (1 - relevance) * its largest cosine with those chosen before`.

    Args:
        scores: `(N,)` cosines with the query.
        vectors: `(N, D)` of unit norm.
        k: how many to choose, at most N.
        relevance: from 0 (only variety) to 1 (only the score).

    Returns:
        Places of the chosen rows, in the order of choice.

    >>> varied(np.array([0.9, 0.89, 0.5]), np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), 2, 0.5)
    [0, 2]
    """
    chosen: list[int] = []
    nearest = np.zeros(len(scores))  # (N,) the largest cosine with a chosen row
    left = np.ones(len(scores), dtype=bool)
    while len(chosen) < min(k, len(scores)):
        gains = np.where(left, relevance * scores - (1 - relevance) * nearest, -np.inf)
        best = int(gains.argmax())
        similar = vectors @ vectors[best]  # (N,)
        nearest = np.maximum(nearest, similar) if chosen else similar
        chosen.append(best)
        left[best] = False
    return chosen
