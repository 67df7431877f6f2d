"""Metrics of whole rankings, for any number of relevant candidates and grades of relevance, query by query.

A tie is no merit: where scores do not tell candidates apart, the order that is worst for the metric counts, or the
exact mean over all orders. A result therefore never depends on the order in which candidates happen to be stored.

Sources: all but `ndcg_exponential` and `mrr@k` as in trec_eval; the exponential gain: Burges et al. 2005 (RankNet).
Means over tied orders as in McSherry and Najork 2008, with the cut-offs worked out here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.metrics.score_rows import Rows, check_alike, check_finite, padded, rows_of
from mmemb_r1.evaluation.metrics.tie_groups import Floats, Ints, Places, find_places, worst_order

LARGEST_GRADE = 1000  # what comes out has to be finite
TIES = ("pessimistic", "expected")
_CELLS = 2**22  # of a table of scores that is worked on at a time, 32 MiB


def per_query(
    name: str,
    scores: Rows,
    relevance: Rows,
    *,
    tolerance: float = 0.0,
    ties: str = "pessimistic",
) -> Floats:
    """
    A metric of each query.

    With R the number of relevant candidates (grade above 0), and sums over ranks 1 to k, or over all without `@k`:

    * `hit@k`: 1 if a relevant candidate is among the first k, else 0.
    * `recall@k`, `precision@k`: relevant candidates among the first k, divided by R, by k.
    * `mrr`, `mrr@k`: 1 / rank of the best relevant candidate, 0 if that is beyond k.
    * `map`, `map@k`: sum over relevant candidates of the precision at their rank, divided by R (not by `min(R, k)`).
    * `ndcg_linear`, `ndcg_linear@k`: sum of grade / log2(rank + 1), divided by the same sum for the query's grades in
      descending order, all candidates it has being looked at for that.
    * `ndcg_exponential`, `ndcg_exponential@k`: the same with the gain 2^grade - 1.

    Args:
        name: of the metric.
        scores: `(Q, C)`, or Q rows `(C_q,)` where each query has its own candidates. Higher is better.
        relevance: grades of the same shape, 0 for what is not relevant.
        tolerance: scores that differ by no more are a tie; defaults to 0. Products of equal vectors can differ in
            their last bits, so scores that come out of one need about 1e-6. A tie group is led by its best relevant
            candidate and holds what scores within the tolerance of that, less what the group before holds.
        ties: `"pessimistic"` (default): in a tie group what is not relevant ranks first, then the lower grades.
            `"expected"`: the exact mean over all orders within tie groups.

    Returns:
        `(Q,)` float64 from 0 to 1.

    Raises:
        ValueError: if the name or an option is not known; there is no query; scores and relevance differ in their
            number of queries or of candidates; a score is NaN or infinite; a grade is negative, NaN or infinite; or a
            query has no relevant candidate.

    >>> per_query("ndcg_linear@5", [[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]], [[2, 1, 0], [1, 2, 0]]).round(3).tolist()
    [1.0, 0.86]
    >>> per_query("hit@1", [[0.5, 0.5, 0.5, 0.5]], [[1, 0, 0, 0]]).tolist()  # a collapsed encoder
    [0.0]
    >>> per_query("hit@1", [[0.5, 0.5, 0.5, 0.5]], [[1, 0, 0, 0]], ties="expected").tolist()
    [0.25]
    >>> per_query("mrr", [[0.9, 0.8], [0.9, 0.8, 0.7]], [[0, 1], [0, 0, 1]]).round(3).tolist()
    [0.5, 0.333]
    """
    return per_query_of([name], scores, relevance, tolerance=tolerance, ties=ties)[name]


def per_query_of(
    names: Sequence[str],
    scores: Rows,
    relevance: Rows,
    *,
    tolerance: float = 0.0,
    ties: str = "pessimistic",
) -> dict[str, Floats]:
    """
    Several metrics of each query, the candidates being ranked once: `{name: (Q,)}`. All else as in [`per_query`].

    >>> results = per_query_of(["hit@1", "mrr"], [[0.9, 0.8, 0.7]], [[0, 1, 1]])
    >>> {name: values.tolist() for name, values in results.items()}
    {'hit@1': [0.0], 'mrr': [0.5]}
    """
    metrics = {name: _named(name) for name in names}
    if ties not in TIES:
        raise ValueError(f"ties={ties!r}; allowed: {', '.join(map(repr, TIES))}")
    if not 0 <= tolerance < np.inf:
        raise ValueError(f"tolerance is {tolerance}; allowed: a number from 0")
    score_rows, grade_rows = rows_of("scores", scores), rows_of("relevance", relevance)
    check_alike("relevance", grade_rows, score_rows)
    step = max(1, _CELLS // max(len(row) for row in score_rows))
    parts: dict[str, list[Floats]] = {name: [] for name in names}
    for start in range(0, len(score_rows), step):
        block = slice(start, start + step)
        tables = _tables(score_rows[block], grade_rows[block], start)  # checked whatever is asked for
        if not metrics:
            continue
        places = find_places(*tables, tolerance)
        if ties == "pessimistic":
            places = worst_order(places)
        for name, (formula, k) in metrics.items():
            parts[name].append(formula(places, k or places.num_candidates))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _tables(scores: Sequence[npt.NDArray], grades: Sequence[npt.NDArray], first: int) -> tuple[Floats, Floats]:
    """Scores and grades `(Q, C)` as [`find_places`] takes them, of queries that `first` others come before."""
    (score, there), (grade, _) = padded(scores), padded(grades)
    check_finite("score", score, first=first)
    check_finite("grade", grade, first=first, lowest=0)
    empty = ~(grade > 0).any(axis=1)
    if empty.any():
        raise ValueError(f"query {first + int(np.argmax(empty))} has no relevant candidate; leave it out")
    score[~there] = -np.inf
    return score, grade


def _hit(places: Places, k: int) -> Floats:
    return _best(places, _cut(np.ones(places.num_candidates), k))


def _mrr(places: Places, k: int) -> Floats:
    return _best(places, _cut(1 / _ranks(places), k))


def _recall(places: Places, k: int) -> Floats:
    found = np.bincount(places.query, _mean_at(places, _cut(np.ones(places.num_candidates), k)))
    return found / np.bincount(places.query)


def _precision(places: Places, k: int) -> Floats:
    found = np.bincount(places.query, _mean_at(places, _cut(np.ones(places.num_candidates), k)))
    return found / k


def _map(places: Places, k: int) -> Floats:
    """
    Mean over orders of the average precision.

    A relevant candidate is as likely at each place j = 1 ... n of its group. Of the r - 1 other relevant ones, a share
    (j - 1) / (n - 1) is then before it on average, so its precision there is on average
    (R + 1 + (j - 1) (r - 1) / (n - 1)) / (A + j), A candidates and R relevant ones being above the group.
    """
    harmonic = np.append(0.0, np.cumsum(1 / _ranks(places)))
    above, tied = places.above, places.tied
    within = np.clip(k - above, 0, tied)  # (N,) places of the group that are not beyond k
    reciprocals = harmonic[above + within] - harmonic[above]  # sum of 1 / (A + j)
    share = (places.relevant_tied - 1) / np.maximum(tied - 1, 1)
    ones_before = within - (above + 1) * reciprocals  # sum of (j - 1) / (A + j)
    precision = ((places.relevant_above + 1) * reciprocals + share * ones_before) / tied
    return np.bincount(places.query, precision) / np.bincount(places.query)


def _ndcg_linear(places: Places, k: int) -> Floats:
    return _ndcg(places, places.grade, k)


def _ndcg_exponential(places: Places, k: int) -> Floats:
    if places.grade.max() > LARGEST_GRADE:
        raise ValueError(
            f"a grade is {places.grade.max():g}; the exponential gain 2^grade - 1 takes grades up to "
            f"{LARGEST_GRADE}: rescale them, or use ndcg_linear"
        )
    return _ndcg(places, np.expm1(places.grade * np.log(2)), k)  # a grade near 0 must not round to no gain


def _ndcg(places: Places, gain: Floats, k: int) -> Floats:
    discount = _cut(1 / np.log2(_ranks(places) + 1), k)
    ideal = gain[np.lexsort((-gain, places.query))] * discount[places.order]
    return np.bincount(places.query, gain * _mean_at(places, discount)) / np.bincount(places.query, ideal)


def _ranks(places: Places) -> Ints:
    return np.arange(1, places.num_candidates + 1)


def _cut(weights: Floats, k: int) -> Floats:
    """`(C,)` weights of the ranks, 0 beyond `k`."""
    return np.where(np.arange(len(weights)) < k, weights, 0.0)


def _mean_at(places: Places, weights: Floats) -> Floats:
    """`(N,)` mean of the `(C,)` weights over the ranks that an entry's tie group takes."""
    total = np.append(0.0, np.cumsum(weights))
    alone = weights[np.minimum(places.above, len(weights) - 1)]  # exactly, not as a difference of sums
    return np.where(places.tied == 1, alone, (total[places.above + places.tied] - total[places.above]) / places.tied)


def _best(places: Places, weights: Floats) -> Floats:
    """
    `(Q,)` mean of the `(C,)` weights at the rank of the best relevant candidate.

    It is in the first group. Given that none of the r relevant ones is at the places before j, the one at place j is
    relevant with the chance r / (n - j + 1).
    """
    best = places.order == 0
    above, tied, relevant = (
        places.above[best, None],
        places.tied[best, None],
        places.relevant_tied[best, None],
    )  # (Q, 1)
    place = np.arange(tied.max())  # from 0
    left = np.maximum(tied - place, 1)
    miss = np.maximum(left - relevant, 0) / left  # (Q, P)
    none_before = np.hstack([np.ones_like(above, dtype=np.float64), np.cumprod(miss, axis=1)[:, :-1]])
    at_rank = weights[np.minimum(above + place, len(weights) - 1)]
    return (none_before * (1 - miss) * at_rank).sum(axis=1)


@dataclass(frozen=True)
class Metric:
    """
    A kind of metric.

    Args:
        formula: of the places of relevant candidates and the cut-off, to `(Q,)`.
        whole: whether it is defined without a cut-off.
    """

    formula: Callable[[Places, int], Floats]
    whole: bool


METRICS = {
    "hit": Metric(_hit, whole=False),
    "recall": Metric(_recall, whole=False),
    "precision": Metric(_precision, whole=False),
    "mrr": Metric(_mrr, whole=True),
    "map": Metric(_map, whole=True),
    "ndcg_linear": Metric(_ndcg_linear, whole=True),
    "ndcg_exponential": Metric(_ndcg_exponential, whole=True),
}


def _named(name: str) -> tuple[Callable[[Places, int], Floats], int | None]:
    parts = re.fullmatch(r"([a-z_]+)(?:@([1-9][0-9]*))?", name)
    if parts is None or parts[1] not in METRICS or not (parts[2] or METRICS[parts[1]].whole):
        known = [f"{kind}@k" + (f" or {kind}" if metric.whole else "") for kind, metric in METRICS.items()]
        raise ValueError(f"the metric {name!r} is not known; allowed: {', '.join(known)}, with k from 1")
    return METRICS[parts[1]].formula, None if parts[2] is None else int(parts[2])
