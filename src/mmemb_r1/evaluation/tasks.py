"""What is asked of an embedding model, wherever the questions come from: Atlas, MMEB-V2, a table of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class RetrievalTask:
    """
    Queries, candidates, and which of these are right.

    Args:
        name: unique among the tasks of a run.
        metric: the main one, a name that `mmemb_r1.evaluation.metrics` knows, say `"hit@1"` or `"ndcg_linear@5"`.
        groups: kind of group -> the group this task belongs to, say `{"modality": "image", "meta_task":
            "classification"}` or `{"complexity": "simple"}`. Means are reported per group.
        query_ids: `(Q,)`, unique.
        queries: `(Q,)` inputs as `encode` takes them; may read its items from disk when asked for them.
        candidate_ids: `(C,)`, unique.
        candidates: `(C,)` inputs.
        relevance: `(Q,)`, per query candidate id -> grade above 0; at least one each.
        pools: `(Q,)`, per query the ids of the candidates it competes with. `None`: all candidates, for every query.
        query_prompt, candidate_prompt: instruction given to all inputs of that side that have none of their own;
            `None` leaves it to the model.
        clusters: `(Q,)` what each query is about: rows of a cluster are right or wrong together, so intervals draw
            whole clusters. `None`: every query is one of its own.
        data: what makes this another task, for cache keys and reports: dataset ids, revisions, a content hash.

    Raises:
        ValueError: if lengths differ, an id stands twice, or a relevant candidate is not in a query's pool.
    """

    name: str
    metric: str
    groups: Mapping[str, str]
    query_ids: Sequence[str]
    queries: Sequence[Any]
    candidate_ids: Sequence[str]
    candidates: Sequence[Any]
    relevance: Sequence[Mapping[str, float]]
    pools: Sequence[Sequence[str]] | None = None
    query_prompt: str | None = None
    candidate_prompt: str | None = None
    clusters: Sequence[str] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sides = {"query": (self.query_ids, self.queries), "candidate": (self.candidate_ids, self.candidates)}
        for side, (ids, inputs) in sides.items():
            if len(ids) != len(inputs) or not len(ids):
                raise ValueError(f"{self.name}: {len(ids)} {side} ids for {len(inputs)} inputs; expected one each")
            if twice := _twice(ids):
                raise ValueError(f"{self.name}: the {side} id {twice!r} stands twice; ids have to be unique")
        for what, rows in (("relevance", self.relevance), ("pools", self.pools), ("clusters", self.clusters)):
            if rows is not None and len(rows) != len(self.query_ids):
                raise ValueError(
                    f"{self.name}: {len(rows)} {what} for {len(self.query_ids)} queries; expected one each"
                )
        known = set(self.candidate_ids)
        for row, query in enumerate(self.query_ids):
            pool = known if self.pools is None else set(self.pools[row])
            if self.pools is not None and len(pool) < len(self.pools[row]):
                raise ValueError(f"{self.name}: the pool of query {query!r} holds {_twice(self.pools[row])!r} twice")
            if unknown := pool - known:
                raise ValueError(f"{self.name}: {min(unknown)!r} in the pool of query {query!r} is no candidate")
            grades = self.relevance[row]
            if not grades or min(grades.values()) <= 0:
                raise ValueError(f"{self.name}: the query {query!r} needs a relevant candidate, all grades above 0")
            if missing := set(grades) - pool:
                raise ValueError(f"{self.name}: {min(missing)!r}, relevant to {query!r}, is not among its candidates")


def first_queries(task: RetrievalTask, count: int) -> RetrievalTask:
    """
    The same task with its first queries alone: for a quick look. Candidates of which none of these has one in its
    pool are left out.

    Raises:
        ValueError: if `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"{count} queries of each task: at least 1 is needed")
    return some_queries(task, range(min(count, len(task.query_ids))))


def some_queries(task: RetrievalTask, rows: Sequence[int]) -> RetrievalTask:
    """
    The same task with the queries at these places alone. Candidates of which none of these has one in its pool are
    left out.
    """

    def chosen(values: Sequence[Any]) -> list[Any]:
        return [values[row] for row in rows]

    pools, ids, candidates = None, task.candidate_ids, task.candidates
    if task.pools is not None:
        pools = chosen(task.pools)
        asked = {candidate for pool in pools for candidate in pool}
        kept = [row for row, candidate in enumerate(ids) if candidate in asked]
        ids, candidates = [ids[row] for row in kept], [candidates[row] for row in kept]
    return replace(
        task,
        query_ids=chosen(task.query_ids),
        queries=chosen(task.queries),
        candidate_ids=ids,
        candidates=candidates,
        relevance=chosen(task.relevance),
        pools=pools,
        clusters=None if task.clusters is None else chosen(task.clusters),
    )


def rows_by(names: Iterable[str]) -> dict[str, list[int]]:
    """
    The rows of each name of a column, names as they first come.

    >>> rows_by(["fact", "flag", "fact"])
    {'fact': [0, 2], 'flag': [1]}
    """
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return rows


def clusters_of(task: RetrievalTask) -> list[str]:
    """`(Q,)` what each query is about; where the task does not say, each is a cluster of its own."""
    if task.clusters is not None:
        return list(task.clusters)
    return [f"{task.name}/{query}" for query in task.query_ids]


def _twice(ids: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            return one
        seen.add(one)
    return None
