"""Metrics of scores that come from elsewhere, by the ids of queries and candidates, as trec tools exchange them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from numbers import Real
from typing import TypeVar

import numpy as np

from mmemb_r1.evaluation.metrics.graded import per_query

Value = TypeVar("Value")


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
    A metric of each query, from scores by id. What a run lacks is an error, never a query less in the mean.

    Args:
        metric: its name, as in [`per_query`].
        run: query id -> the score of each of its candidates, as `{candidate id: score}` or as pairs of the two.
        qrels: query id -> candidate id -> grade from 0. Those that are not named have grade 0.
        candidates: ids of the candidates, for all queries alike or by query id. Default: all queries have the same
            candidates, those that the run names anywhere.
        tolerance, ties: as in [`per_query`].

    Returns:
        Query id -> value, in the order of `qrels`.

    Raises:
        ValueError: if there is no query; a query of the qrels is not in the run, or the other way round; a query's
            scores are not those of its candidates, one each; an id stands twice; a judged candidate is none of the
            query's; a query has no relevant candidate; a score or a grade is no finite number, or a grade is below 0;
            or [`per_query`] refuses the metric or an option.

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
    """Query id -> its candidates' ids, in order."""
    shared: Mapping[str, None]
    if isinstance(candidates, Mapping):
        _check_ids("candidates", "queries", candidates.keys(), scored.keys())
        return {
            query: _by_id(f"the candidates of query {query!r}", ((one, None) for one in candidates[query]))
            for query in scored
        }
    if candidates is None:
        shared = dict.fromkeys(chain.from_iterable(scored.values()))
    else:
        shared = _by_id("the candidates", ((one, None) for one in candidates))
    return dict.fromkeys(scored, shared)


def _by_id(where: str, entries: Mapping[str, Value] | Iterable[tuple[str, Value]]) -> Mapping[str, Value]:
    if isinstance(entries, Mapping):
        return entries
    values: dict[str, Value] = {}
    for one, value in entries:
        if one in values:
            raise ValueError(f"{where}: {one!r} stands twice; ids have to be unique")
        values[one] = value
    return values


def _check_ids(where: str, things: str, found: Collection[str], expected: Collection[str]) -> None:
    """Both are views of keys, which compare as sets do."""
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
