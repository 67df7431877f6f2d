"""Compute retrieval metrics. Own code, because no library ranks ties against the model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray | Sequence[npt.ArrayLike]  # (Q, C), or Q rows (C_q,) where each query has its own candidates
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def unit_rows(name: str, vectors: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Scale vectors `(N, D)` to length 1, so that their products are cosines; refuse zero, NaN and infinity."""
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


def _checked_rows(name: str, values: Rows) -> list[npt.NDArray]:
    """Split values into one row `(C_q,)` per query; refuse what has no query, or a query without candidates."""
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


def ranks(scores: Rows, relevance: Rows, *, tolerance: float = 0.0) -> Ints:
    """
    Rank each query's best relevant candidate, 1 being the top, ties counted against it: `(Q,)`.

    Other relevant candidates do not push it down. Arguments and errors as in [`per_query`].

    >>> ranks([[0.9, 0.1, 0.5], [0.5, 0.5, 0.5]], [[0, 0, 1], [1, 0, 0]]).tolist()  # the second encoder is collapsed
    [2, 3]
    """
    table, grades = _tables(*_rows_alike(scores, relevance), 0)  # (Q, C) each
    best = np.where(grades > 0, table, -np.inf).max(axis=1, keepdims=True)  # (Q, 1)
    return 1 + ((table >= best - tolerance) & (grades == 0)).sum(axis=1)


def _tables(scores: Sequence[npt.NDArray], grades: Sequence[npt.NDArray], first: int) -> tuple[Floats, Floats]:
    """Lay out scores and grades as `(Q, C)` for [`_find_places`]; `first` other queries come before them."""
    (score, there), (grade, _) = _padded_table(scores), _padded_table(grades)
    _check_finite("score", score, first=first)
    _check_finite("grade", grade, first=first, lowest=0)
    empty = ~(grade > 0).any(axis=1)
    if empty.any():
        raise ValueError(f"query {first + int(np.argmax(empty))} has no relevant candidate; leave it out")
    score[~there] = -np.inf
    return score, grade


def _padded_table(rows: Sequence[npt.NDArray]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Join rows as a table `(Q, C)`, zeros behind the end of those that are shorter; and say where they are not."""
    lengths = np.array([row.size for row in rows])
    there = np.arange(lengths.max()) < lengths[:, None]
    table = np.zeros(there.shape)
    table[there] = np.concatenate(rows)
    return table, there


def _check_finite(what: str, table: Floats, *, first: int = 0, lowest: float = -np.inf) -> None:
    """Refuse what is NaN, infinite or below `lowest`, by the number of its query (that of row 0 being `first`)."""
    good = np.isfinite(table) & (table >= lowest)
    if not good.all():
        query, candidate = np.argwhere(~good)[0]
        limit = "" if lowest == -np.inf else f" and at least {lowest:g}"
        raise ValueError(
            f"the {what} of query {first + query} and candidate {candidate} is {table[query, candidate]}; it has to "
            f"be finite{limit}"
        )


def _rows_alike(scores: Rows, relevance: Rows) -> tuple[list[npt.NDArray], list[npt.NDArray]]:
    """Split both into a row `(C_q,)` per query; refuse those that are not as many, and each as long, as the other."""
    score_rows, grade_rows = _checked_rows("scores", scores), _checked_rows("relevance", relevance)
    if len(grade_rows) != len(score_rows):
        raise ValueError(
            f"relevance is given for {len(grade_rows)} queries; expected as many as there are scores of, "
            f"{len(score_rows)}"
        )
    for query, (row, score) in enumerate(zip(grade_rows, score_rows, strict=True)):
        if row.size != score.size:
            raise ValueError(
                f"relevance of query {query} is given for {row.size} candidates; expected as many as there are "
                f"scores, {score.size}"
            )
    return score_rows, grade_rows


@dataclass(frozen=True)
class Places:
    """
    Says where the relevant candidates of Q queries stand: all that a metric needs to know, however many others there
    are. Each array has an entry per relevant candidate, `(N,)`, by query and then by rank.
    """

    query: Ints  # from 0 to Q - 1, ascending; every query is there
    grade: Floats  # above 0
    above: Ints  # how many candidates, relevant or not, rank before the entry's tie group
    tied: Ints  # how many are in its tie group, itself included
    relevant_above: Ints  # how many of those above are relevant
    relevant_tied: Ints  # how many of those tied are relevant
    num_candidates: int  # of the query that has most

    @property
    def order(self) -> Ints:
        """Number the entries of each query from 0: `(N,)`."""
        return np.arange(len(self.query)) - np.searchsorted(self.query, self.query)


def _find_places(scores: Floats, relevance: Floats, tolerance: float) -> Places:
    """
    Find the tie groups of relevant candidates, and how many candidates each of them holds.

    A group is led by the best relevant candidate that is in no group yet, and holds all that score within `tolerance`
    of it, less what the group before holds. So a group never spans more than twice the tolerance, and does not depend
    on the order of candidates. Those that are not relevant, and not tied with one that is, only count. Scores `(Q, C)`
    are `-inf` where a query has no candidate.
    """
    relevant = relevance > 0
    query, column = np.nonzero(relevant)  # (N,) each
    score, grade = scores[query, column], relevance[query, column]
    order = np.lexsort((-score, query))
    query, score, grade = query[order], score[order], grade[order]
    first = _first_of_groups(query, score, tolerance)  # (G,)
    size = np.diff(np.append(first, len(query)))
    group = np.repeat(np.arange(len(first)), size)  # (N,)

    best, of = score[first], query[first]
    others = -np.sort(np.where(relevant, np.inf, -scores), axis=1)  # (Q, C), the best first
    start, end = of * others.shape[1], (of + 1) * others.shape[1]
    before = _count(others.ravel(), start, end, best + tolerance, equal=False)
    through = _count(others.ravel(), start, end, best - tolerance, equal=True)
    follows = of[1:] == of[:-1]
    before[1:] = np.where(follows, np.maximum(before[1:], through[:-1]), before[1:])
    relevant_above = first - np.searchsorted(query, of)
    return Places(
        query=query,
        grade=grade[np.lexsort((grade, group))],
        above=(before + relevant_above)[group],
        tied=(through - before + size)[group],
        relevant_above=relevant_above[group],
        relevant_tied=size[group],
        num_candidates=scores.shape[1],
    )


def _worst_order(places: Places) -> Places:
    """Break the ties: in each group the others come first, and then the relevant by ascending grade."""
    within = places.order - places.relevant_above
    alone = np.ones_like(places.tied)
    return replace(
        places,
        above=places.above + places.tied - places.relevant_tied + within,
        tied=alone,
        relevant_above=places.order,
        relevant_tied=alone,
    )


def _first_of_groups(query: Ints, score: Floats, tolerance: float) -> Ints:
    """Find each group's leader: `(G,)` indices, ascending, from `(N,)` scores that descend within each query."""
    # Where a score falls by more than the tolerance a group begins in any case; the stretches between are cut up
    # side by side, each from its top.
    falls = (query[1:] != query[:-1]) | (score[1:] < score[:-1] - tolerance)
    leader = np.flatnonzero(np.append(True, falls))
    end = np.append(leader[1:], len(score))
    found = []
    while leader.size:
        found.append(leader)
        leader = leader + _count(score, leader, end, score[leader] - tolerance, equal=True)
        leader, end = leader[leader < end], end[leader < end]
    return np.sort(np.concatenate(found))


def _count(values: Floats, start: Ints, end: Ints, bound: Floats, *, equal: bool) -> Ints:
    """Count those of `values[start:end]`, which descend, above `bound` or equal to it: a bisection per `start`."""
    low, high = start, end
    while (low < high).any():
        middle = np.minimum((low + high) // 2, len(values) - 1)  # past the end only where low == high already
        counts = values[middle] >= bound if equal else values[middle] > bound
        open_ = low < high
        low = np.where(open_ & counts, middle + 1, low)
        high = np.where(open_ & ~counts, middle, high)
    return low - start


LARGEST_GRADE = 1000  # what comes out has to be finite
TIES = ("pessimistic", "expected")
_CELLS = 2**22  # of a table of scores that is worked on at a time, 32 MiB


def per_query(
    name: str, scores: Rows, relevance: Rows, *, tolerance: float = 0.0, ties: str = "pessimistic"
) -> Floats:
    """
    Compute a metric of each query. docs/metrics.md defines them: `hit@k`, `recall@k`, `precision@k`, and with or
    without `@k` `mrr`, `map`, `ndcg_linear` and `ndcg_exponential`.

    Args:
        name: of the metric.
        scores: `(Q, C)`, or Q rows `(C_q,)` where each query has its own candidates. Higher is better.
        relevance: grades of the same shape, 0 for what is not relevant.
        tolerance: scores that differ by no more are a tie; scores out of a product of vectors need about 1e-6. A tie
            group is led by its best relevant candidate and holds what scores within the tolerance of that, less what
            the group before holds. Default: 0.
        ties: `"pessimistic"` (default): in a tie group what is not relevant ranks first, then the lower grades.
            `"expected"`: the exact mean over all orders within tie groups.

    Returns:
        `(Q,)` float64 from 0 to 1.

    Raises:
        ValueError: if the name or an option is not known; there is no query; both differ in their number of queries or
            candidates; a number is not finite, or a grade negative; or a query has no relevant candidate.

    >>> per_query("ndcg_linear@5", [[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]], [[2, 1, 0], [1, 2, 0]]).round(3).tolist()
    [1.0, 0.86]
    >>> per_query("hit@1", [[0.5, 0.5, 0.5, 0.5]], [[1, 0, 0, 0]], ties="expected").tolist()
    [0.25]
    """
    return per_query_of([name], scores, relevance, tolerance=tolerance, ties=ties)[name]


def per_query_of(
    names: Sequence[str], scores: Rows, relevance: Rows, *, tolerance: float = 0.0, ties: str = "pessimistic"
) -> dict[str, Floats]:
    """Compute several metrics of each query with one ranking of the candidates: name -> `(Q,)`, as [`per_query`]."""
    metrics = {name: _named(name) for name in names}
    if ties not in TIES:
        raise ValueError(f"ties={ties!r}; allowed: {', '.join(map(repr, TIES))}")
    if not 0 <= tolerance < np.inf:
        raise ValueError(f"tolerance is {tolerance}; allowed: a number from 0")
    score_rows, grade_rows = _rows_alike(scores, relevance)
    step = max(1, _CELLS // max(len(row) for row in score_rows))
    parts: dict[str, list[Floats]] = {name: [] for name in names}
    for start in range(0, len(score_rows), step):
        block = slice(start, start + step)
        tables = _tables(score_rows[block], grade_rows[block], start)  # checked whatever is asked for
        if not metrics:
            continue
        places = _find_places(*tables, tolerance)
        if ties == "pessimistic":
            places = _worst_order(places)
        for name, (formula, k) in metrics.items():
            parts[name].append(formula(places, k or places.num_candidates))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _found_until(places: Places, k: int) -> npt.NDArray[Any]:
    """Count `(Q,)` the relevant candidates among the first `k`; a mean over orders where they are tied."""
    return np.bincount(places.query, _mean_at(places, _cut(np.ones(places.num_candidates), k)))


def _map(places: Places, k: int) -> Floats:
    """
    Average the precision over orders.

    A relevant candidate is as likely at each place j = 1 ... n of its group. Of the r - 1 other relevant ones, a share
    (j - 1) / (n - 1) is then before it on average, so its precision there is on average
    (R + 1 + (j - 1) (r - 1) / (n - 1)) / (A + j), A candidates and R relevant ones being above the group.
    """
    harmonic = np.append(0.0, np.cumsum(1 / _all_ranks(places)))
    above, tied = places.above, places.tied
    within = np.clip(k - above, 0, tied)  # (N,) places of the group that are not beyond k
    reciprocals = harmonic[above + within] - harmonic[above]  # sum of 1 / (A + j)
    share = (places.relevant_tied - 1) / np.maximum(tied - 1, 1)
    ones_before = within - (above + 1) * reciprocals  # sum of (j - 1) / (A + j)
    precision = ((places.relevant_above + 1) * reciprocals + share * ones_before) / tied
    return np.bincount(places.query, precision) / np.bincount(places.query)


def _ndcg_exponential(places: Places, k: int) -> Floats:
    if places.grade.max() > LARGEST_GRADE:
        raise ValueError(
            f"a grade is {places.grade.max():g}; the exponential gain 2^grade - 1 takes grades up to "
            f"{LARGEST_GRADE}: rescale them, or use ndcg_linear"
        )
    return _ndcg(places, np.expm1(places.grade * np.log(2)), k)  # a grade near 0 must not round to no gain


def _ndcg(places: Places, gain: Floats, k: int) -> Floats:
    discount = _cut(1 / np.log2(_all_ranks(places) + 1), k)
    ideal = gain[np.lexsort((-gain, places.query))] * discount[places.order]
    return np.bincount(places.query, gain * _mean_at(places, discount)) / np.bincount(places.query, ideal)


def _all_ranks(places: Places) -> Ints:
    return np.arange(1, places.num_candidates + 1)


def _cut(weights: Floats, k: int) -> Floats:
    """Set `(C,)` weights of ranks beyond `k` to 0."""
    return np.where(np.arange(len(weights)) < k, weights, 0.0)


def _mean_at(places: Places, weights: Floats) -> Floats:
    """Average the `(C,)` weights over the ranks that each entry's tie group takes: `(N,)`."""
    total = np.append(0.0, np.cumsum(weights))
    alone = weights[np.minimum(places.above, len(weights) - 1)]  # exactly, not as a difference of sums
    return np.where(places.tied == 1, alone, (total[places.above + places.tied] - total[places.above]) / places.tied)


def _at_best(places: Places, weights: Floats) -> Floats:
    """
    Average the `(C,)` weights at the rank of each query's best relevant candidate: `(Q,)`.

    It is in the first group. Given that none of the r relevant ones is at the places before j, the one at place j is
    relevant with the chance r / (n - j + 1).
    """
    best = places.order == 0
    above, tied, relevant = (part[best, None] for part in (places.above, places.tied, places.relevant_tied))  # (Q, 1)
    place = np.arange(tied.max())  # from 0
    left = np.maximum(tied - place, 1)
    miss = np.maximum(left - relevant, 0) / left  # (Q, P)
    none_before = np.hstack([np.ones_like(above, dtype=np.float64), np.cumprod(miss, axis=1)[:, :-1]])
    at_rank = weights[np.minimum(above + place, len(weights) - 1)]
    return (none_before * (1 - miss) * at_rank).sum(axis=1)


METRICS: Mapping[str, Callable[[Places, int], Floats]] = {
    "hit": lambda places, k: _at_best(places, _cut(np.ones(places.num_candidates), k)),
    "recall": lambda places, k: _found_until(places, k) / np.bincount(places.query),
    "precision": lambda places, k: _found_until(places, k) / k,
    "mrr": lambda places, k: _at_best(places, _cut(1 / _all_ranks(places), k)),
    "map": _map,
    "ndcg_linear": lambda places, k: _ndcg(places, places.grade, k),
    "ndcg_exponential": _ndcg_exponential,
}
NEED_CUTOFF = ("hit", "recall", "precision")  # have no meaning without @k


def _named(name: str) -> tuple[Callable[[Places, int], Floats], int | None]:
    """Look up a metric's formula and its cut-off."""
    parts = re.fullmatch(r"([a-z_]+)(?:@([1-9][0-9]*))?", name)
    if parts is None or parts[1] not in METRICS or (parts[1] in NEED_CUTOFF and not parts[2]):
        known = [f"{kind}@k" + ("" if kind in NEED_CUTOFF else f" or {kind}") for kind in METRICS]
        raise ValueError(f"the metric {name!r} is not known; allowed: {', '.join(known)}, with k from 1")
    return METRICS[parts[1]], None if parts[2] is None else int(parts[2])


def score_run(
    metric: str,
    run: Mapping[str, Mapping[str, float] | Iterable[tuple[str, float]]],
    qrels: Mapping[str, Mapping[str, float]],
    *,
    candidates: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    tolerance: float = 0.0,
    ties: str = "pessimistic",
) -> dict[str, float]:
    """
    Compute a metric of each query from scores by id. What a run lacks is an error, never a query less in the mean.

    Args:
        metric, tolerance, ties: as in [`per_query`].
        run: query id -> the score of each of its candidates, as `{candidate id: score}` or as pairs of the two.
        qrels: query id -> candidate id -> grade from 0. Those that are not named have grade 0.
        candidates: ids of the candidates, for all queries alike or by query id. Default: those that the run names.

    Returns:
        Query id -> value, in the order of `qrels`.

    Raises:
        ValueError: if ids of both sides do not match one to one, or as in [`per_query`].

    >>> run = {"q1": {"a": 0.9, "b": 0.1}, "q2": [("a", 0.5), ("b", 0.5)]}
    >>> score_run("mrr", run, {"q1": {"a": 1}, "q2": {"a": 1}})
    {'q1': 1.0, 'q2': 0.5}
    """
    if not qrels:
        raise ValueError("the qrels hold no query; expected one at least")
    _check_ids("the run", "queries", run.keys(), qrels.keys())
    scored = {query: _by_id(f"the run's scores of query {query!r}", run[query]) for query in qrels}
    pools = _pools(candidates, scored)
    scores, relevance = [], []
    for query, grades in qrels.items():
        pool, found = pools[query], scored[query]
        _check_ids(f"query {query!r} of the run", "scores", found.keys(), pool.keys())
        if unknown := [one for one in grades if one not in pool]:
            raise ValueError(f"the qrels of query {query!r} judge {unknown[0]!r}, which is none of its candidates")
        _check_numbers(f"the score of query {query!r}", found, -math.inf)
        _check_numbers(f"the grade of query {query!r}", grades, 0)
        if not any(grades.values()):
            raise ValueError(f"query {query!r} of the qrels has no relevant candidate; leave it out of both")
        scores.append(np.array([found[one] for one in pool], dtype=np.float64))
        relevance.append(np.array([grades.get(one, 0) for one in pool], dtype=np.float64))
    return dict(zip(qrels, per_query(metric, scores, relevance, tolerance=tolerance, ties=ties).tolist(), strict=True))


def _pools(
    candidates: Sequence[str] | Mapping[str, Sequence[str]] | None, scored: Mapping[str, Mapping[str, float]]
) -> dict[str, Mapping[str, None]]:
    """Find each query's candidates: query id -> their ids, in order."""
    if candidates is None:
        return dict.fromkeys(scored, dict.fromkeys(chain.from_iterable(scored.values())))
    if not isinstance(candidates, Mapping):
        return dict.fromkeys(scored, _by_id("the candidates", ((one, None) for one in candidates)))
    _check_ids("candidates", "queries", candidates.keys(), scored.keys())
    return {
        query: _by_id(f"the candidates of query {query!r}", ((one, None) for one in candidates[query]))
        for query in scored
    }


def _by_id(where: str, entries: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Mapping[str, Any]:
    if isinstance(entries, Mapping):
        return entries
    values: dict[str, Any] = {}
    for one, value in entries:
        if one in values:
            raise ValueError(f"{where}: {one!r} stands twice; ids have to be unique")
        values[one] = value
    return values


def _check_ids(where: str, things: str, found: Collection[str], expected: Collection[str]) -> None:
    """Refuse ids that are missing or not known; both are views of keys, which compare as sets do."""
    if found != expected:
        unknown = next((f"{one!r} is not known" for one in found if one not in expected), "")
        missing = next((f"{one!r} is missing" for one in expected if one not in found), "")
        faults = " and ".join(filter(None, (missing, unknown)))
        raise ValueError(f"{where}: {len(found)} {things}, expected {len(expected)}; {faults}")


def _check_numbers(where: str, values: Mapping[str, float], lowest: float) -> None:
    for one, value in values.items():
        if not isinstance(value, Real) or not lowest <= value < math.inf or value == -math.inf:
            limit = "" if lowest == -math.inf else f" from {lowest:g}"
            raise ValueError(f"{where} and candidate {one!r} is {value!r}; allowed: finite numbers{limit}")
