"""Score queries against candidates, without all similarities in memory at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.metrics import per_query_of, ranks, unit_rows
from mmemb_r1.evaluation.tasks import RetrievalTask
from mmemb_r1.objective import target_probability

TIE_TOLERANCE = 1e-6  # rounding of a float32 product of unit vectors
SCORES_AT_ONCE = 4_000_000
ABSENT = -2.0  # below any cosine: fills up the rows of queries with fewer candidates than others
OF_RANK = re.compile(r"mrr|hit@(\d+)")
# What is told beside a task's main metric, by the kind of metric that is.
FAMILIES = {
    "rank": ("hit@1", "mrr", "hit@5", "hit@10"),
    "graded": ("hit@1", "mrr", "recall@5", "map", "ndcg_linear@5", "ndcg_linear@10", "ndcg_exponential@5"),
}
BESIDE_METRICS = ("rank", "margin", "target_probability")  # fields of `Scored`
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """
    Says how Q queries did.

    Attributes:
        metrics: name -> `(Q,)` float64; the task's main metric, and others of its family.
        rank: `(Q,)` int64, of the best positive, ties against it; of a query without one that after all candidates.
        margin: `(Q,)` float64, cosine of the best positive minus that of the best other candidate; NaN where there is
            no positive or no other.
        target_probability: `(Q,)` float64, of the best positive among itself and all that are no positives, see
            [`~mmemb_r1.objective.target_probability`]. In the files of rows its column is called `alignment`.
    """

    metrics: dict[str, Floats]
    rank: npt.NDArray[np.int64]
    margin: Floats
    target_probability: Floats


def score_queries(
    task: RetrievalTask, queries: npt.NDArray[np.float32], candidates: npt.NDArray[np.float32]
) -> Scored:
    """
    Score every query of a task `(Q, D)` among its candidates `(C, D)`, both in its order, by cosine similarity.

    Raises:
        ValueError: if there are not as many vectors as inputs, or one has no direction (zero, NaN or infinite).
    """
    for side, vectors, ids in (("query", queries, task.query_ids), ("candidate", candidates, task.candidate_ids)):
        if len(vectors) != len(ids):
            raise ValueError(f"{task.name}: {len(vectors)} {side} vectors for {len(ids)} inputs; expected one each")
    left, right = unit_rows(f"{task.name}: queries", queries), unit_rows(f"{task.name}: candidates", candidates)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"{task.name}: queries have {left.shape[1]} dimensions, candidates {right.shape[1]}")
    names = dict.fromkeys((task.metric, *FAMILIES["rank" if OF_RANK.fullmatch(task.metric) else "graded"]))
    parts: list[Scored] = []
    for scores, relevance in _parts(task, left, right):
        parts.append(_scored(names, scores, relevance))
    rest = {field: np.concatenate([getattr(part, field) for part in parts]) for field in BESIDE_METRICS}
    return Scored({name: np.concatenate([part.metrics[name] for part in parts]) for name in names}, **rest)


def _scored(names: Iterable[str], scores: Floats, relevance: Floats) -> Scored:
    """Score some queries by cosines and grades `(q, C)`; one without a right candidate gets 0 in every metric."""
    right = (relevance > 0).any(axis=1)  # (q,)
    count = len(scores)
    metrics = {name: np.zeros(count) for name in names}
    rank, margin, probability = (scores != ABSENT).sum(axis=1) + 1, np.full(count, np.nan), np.zeros(count)
    if right.any():
        scores, relevance = scores[right], relevance[right]
        rank[right] = ranks(scores, relevance, tolerance=TIE_TOLERANCE)
        for name, values in metrics_of(names, scores, relevance, rank[right]).items():
            metrics[name][right] = values
        margin[right], probability[right] = margin_and_target_probability(scores, relevance)
    return Scored(metrics, rank, margin, probability)


def joined_scores(where: npt.NDArray[np.bool_], first: Scored, second: Scored) -> Scored:
    """Take the queries that `where` `(Q,)` holds for from one scoring of a task, and the others from another."""
    metrics = {name: np.where(where, values, second.metrics[name]) for name, values in first.metrics.items()}
    rest = {field: np.where(where, getattr(first, field), getattr(second, field)) for field in BESIDE_METRICS}
    return Scored(metrics, **rest)


def metrics_of(
    names: Iterable[str], scores: Floats, relevance: Floats, rank: npt.NDArray[np.int64]
) -> dict[str, Floats]:
    """Compute name -> `(Q,)` values; what follows from the rank is read off it, all else sorts `scores` `(Q, C)`."""
    found = {name: OF_RANK.fullmatch(name) for name in names}
    values = per_query_of(
        [name for name, match in found.items() if not match], scores, relevance, tolerance=TIE_TOLERANCE
    )
    for name, match in found.items():
        if match:
            values[name] = 1 / rank if match[1] is None else (rank <= int(match[1])).astype(np.float64)
    return values


def margin_and_target_probability(scores: Floats, relevance: Floats) -> tuple[Floats, Floats]:
    """
    Compute margin and target probability `(Q,)`, as [`Scored`] has them, from cosines and grades `(Q, C)`.

    >>> margin, probability = margin_and_target_probability(np.array([[0.5, 0.48, 0.9]]), np.array([[1, 0, 2]]))
    >>> margin.round(3).tolist(), probability.round(3).tolist()
    ([0.42], [1.0])
    """
    positives = np.where(relevance > 0, scores, -np.inf)  # (Q, C)
    best = positives.argmax(axis=1)[:, None]  # (Q, 1)
    others = np.where((relevance > 0) | (scores == ABSENT), -np.inf, scores)  # (Q, C)
    target = np.take_along_axis(positives, best, axis=1)
    margin = target[:, 0] - others.max(axis=1)
    np.put_along_axis(others, best, target, axis=1)
    return np.where(np.isfinite(margin), margin, np.nan), target_probability(others, best[:, 0])


def _parts(
    task: RetrievalTask, queries: npt.NDArray[np.float32], candidates: npt.NDArray[np.float32]
) -> Iterator[tuple[Floats, Floats]]:
    """Yield cosines and grades `(q, W)` of some queries after others; candidates that a query lacks are `ABSENT`."""
    place = {candidate: row for row, candidate in enumerate(task.candidate_ids)}
    width = len(candidates) if task.pools is None else max(map(len, task.pools))
    step = max(1, SCORES_AT_ONCE // width)
    for start in range(0, len(queries), step):
        rows = range(start, min(start + step, len(queries)))
        if task.pools is None:
            scores = (queries[rows.start : rows.stop] @ candidates.T).astype(np.float64)  # (q, C)
            yield scores, _grades(place, [task.relevance[row] for row in rows], width)
            continue
        scores, grades = np.full((len(rows), width), ABSENT), np.zeros((len(rows), width))
        for line, row in enumerate(rows):
            pool = task.pools[row]
            scores[line, : len(pool)] = candidates[[place[candidate] for candidate in pool]] @ queries[row]
            where = {candidate: column for column, candidate in enumerate(pool)}
            grades[line] = _grades(where, [task.relevance[row]], width)[0]
        yield scores, grades


def _grades(place: Mapping[str, int], relevance: Sequence[Mapping[str, float]], width: int) -> Floats:
    """Lay out grades `(q, width)` by the column of each candidate."""
    grades = np.zeros((len(relevance), width))
    for line, of_candidate in enumerate(relevance):
        grades[line, [place[candidate] for candidate in of_candidate]] = list(of_candidate.values())
    return grades


MOST_BYTES = 2**30


class HasEmbeddings(Protocol):
    """Describes what [`CandidateVectors`] keeps: vectors `(C, D)`, and whatever else is told of them."""

    @property
    def embeddings(self) -> npt.NDArray[np.float32]: ...


Made = TypeVar("Made", bound=HasEmbeddings)


class CandidateVectors(Generic[Made]):
    """Keeps what was made of the candidates used last, up to `most_bytes` of vectors; the last task's in any case."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._held: dict[tuple[int, str], tuple[Any, str | None, Made]] = {}

    def of(self, task: RetrievalTask, embed: Callable[[RetrievalTask], Made], mode: str = "never") -> Made:
        """Look up a task's candidates by sequence, prompt and reasoning mode, or ask `embed` for them."""
        key = id(task.candidates), mode
        held = self._held.pop(key, None)
        if held is None or held[1] != task.candidate_prompt:
            held = (task.candidates, task.candidate_prompt, embed(task))
        self._held[key] = held  # the last one used comes last; no other object gets its id
        while len(self._held) > 1 and sum(one[2].embeddings.nbytes for one in self._held.values()) > self.most_bytes:
            self._held.pop(next(iter(self._held)))
        return held[2]
