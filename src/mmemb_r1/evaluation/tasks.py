"""Describe retrieval tasks, wherever they come from: Atlas, MMEB-V2, a table or a reader of one's own."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

ALL = "all"  # the group of all tasks


@dataclass(frozen=True)
class RetrievalTask:
    """
    Holds queries, candidates, and which of these are right.

    Args:
        name: unique among the tasks of a run.
        metric: the main one, a name that `mmemb_r1.evaluation.metrics` knows, say `"hit@1"` or `"ndcg_linear@5"`.
        groups: kind of group -> the group this task belongs to, say `{"complexity": "simple"}`; reports give means
            per group.
        query_ids, candidate_ids: `(Q,)` and `(C,)`, unique.
        queries, candidates: `(Q,)` and `(C,)` inputs as `encode` takes them; items may be read when asked for.
        relevance: `(Q,)`, per query candidate id -> grade above 0; at least one each, but of the `unanswerable`.
        pools: `(Q,)`, per query the ids of the candidates it competes with. `None`: all candidates, for every query.
        query_prompt, candidate_prompt: instruction given to all inputs of that side that have none of their own;
            `None` leaves it to the model.
        clusters: `(Q,)` what each query is about: rows of a cluster are right or wrong together, so intervals draw
            whole clusters. `None`: every query is one of its own.
        data: what makes this another task, for cache keys and reports: dataset ids, revisions, a content hash.
        unanswerable: ids of queries that none of their candidates is right for, as their benchmark has them: their
            `relevance` is empty, and they score 0. Default: none.
        baselines: what needs no model -> its score, say `{"majority": 0.25}`; reported beside the model's.

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
    unanswerable: Collection[str] = ()
    baselines: Mapping[str, float] = field(default_factory=dict)

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
        known, unanswerable = set(self.candidate_ids), set(self.unanswerable)
        for row, query in enumerate(self.query_ids):
            pool = known if self.pools is None else set(self.pools[row])
            if self.pools is not None and len(pool) < len(self.pools[row]):
                raise ValueError(f"{self.name}: the pool of query {query!r} holds {_twice(self.pools[row])!r} twice")
            if unknown := pool - known:
                raise ValueError(f"{self.name}: {min(unknown)!r} in the pool of query {query!r} is no candidate")
            grades = self.relevance[row]
            if not grades and query in unanswerable:
                continue
            if not grades or min(grades.values()) <= 0:
                raise ValueError(f"{self.name}: the query {query!r} needs a relevant candidate, all grades above 0")
            if missing := set(grades) - pool:
                raise ValueError(f"{self.name}: {min(missing)!r}, relevant to {query!r}, is not among its candidates")


@dataclass(frozen=True)
class TaskSource:
    """
    Tasks, and what results tell of where they come from: what a reader returns.

    Args:
        tasks: read one after the other; names have to be unique.
        noted: for the `config` of results, say `{"dataset": "Atlas", "split": "test"}`.
        overall: computes what results hold under `overall`; of benchmarks that have a mean over all of their tasks.
    """

    tasks: Iterable[RetrievalTask]
    noted: Mapping[str, Any] = field(default_factory=dict)
    overall: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None

    @classmethod
    def of(cls, tasks: Iterable[RetrievalTask] | TaskSource) -> TaskSource:
        """Take tasks alone for a source of which nothing is noted."""
        return tasks if isinstance(tasks, TaskSource) else cls(tasks)


def first_queries(task: RetrievalTask, count: int) -> RetrievalTask:
    """Keep the first queries of a task, for a quick look, and the candidates that one of these has in its pool."""
    if count < 1:
        raise ValueError(f"{count} queries of each task: at least 1 is needed")
    return some_queries(task, range(min(count, len(task.query_ids))))


def some_queries(task: RetrievalTask, rows: Sequence[int]) -> RetrievalTask:
    """Keep the queries of a task that stand at these places, and the candidates that one of these has in its pool."""

    def of_rows(values: Sequence[Any]) -> list[Any]:
        return [values[row] for row in rows]

    pools, ids, candidates = None, task.candidate_ids, task.candidates
    if task.pools is not None:
        pools = of_rows(task.pools)
        asked = {candidate for pool in pools for candidate in pool}
        kept = [row for row, candidate in enumerate(ids) if candidate in asked]
        ids, candidates = [ids[row] for row in kept], [candidates[row] for row in kept]
    return replace(
        task,
        query_ids=of_rows(task.query_ids),
        queries=of_rows(task.queries),
        candidate_ids=ids,
        candidates=candidates,
        relevance=of_rows(task.relevance),
        pools=pools,
        clusters=None if task.clusters is None else of_rows(task.clusters),
    )


def rows_by(names: Iterable[str]) -> dict[str, list[int]]:
    """
    Group the rows of a column by its names, names as they first come.

    >>> rows_by(["fact", "flag", "fact"])
    {'fact': [0, 2], 'flag': [1]}
    """
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return rows


def clusters_of(task: RetrievalTask) -> list[str]:
    """Name what each query is about: `(Q,)`. Where the task does not say, each is a cluster of its own."""
    if task.clusters is not None:
        return list(task.clusters)
    return [f"{task.name}/{query}" for query in task.query_ids]


def _twice(ids: Sequence[str]) -> str | None:
    return next((one for one, count in Counter(ids).items() if count > 1), None)


def members_of(groups: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """
    List the tasks of every group, and all of them, from the `groups` of each task.

    >>> members_of({"fact": {"complexity": "simple"}, "flag": {"complexity": "multi-hop"}})
    {'simple': ['fact'], 'multi-hop': ['flag'], 'all': ['fact', 'flag']}
    """
    members: dict[str, list[str]] = defaultdict(list)
    for name, of_task in groups.items():
        for group in of_task.values():
            members[group].append(name)
    return {**members, ALL: list(groups)}


def task_names(groups: Mapping[str, Mapping[str, str]], wanted: Iterable[str]) -> list[str]:
    """
    Find the tasks that are wanted by their names or by those of their groups, from the `groups` of each task.

    Raises:
        ValueError: if a name is neither, or there are none.

    >>> groups = {"fact": {"complexity": "simple"}, "flag": {"complexity": "multi-hop"}}
    >>> task_names(groups, ["simple"]), task_names(groups, ["flag", "fact"])
    (['fact'], ['fact', 'flag'])
    """
    asked = list(wanted)
    known = {*groups, *(group for of_task in groups.values() for group in of_task.values())}
    if not asked or (unknown := [name for name in asked if name not in known]):
        what = f"there is no task or group {unknown[0]!r}" if asked else "no task was named"
        raise ValueError(f"{what}; allowed: {', '.join(sorted(known))}")
    return [name for name, of_task in groups.items() if {name, *of_task.values()}.intersection(asked)]


def select_tasks(tasks: Iterable[RetrievalTask], wanted: Iterable[str]) -> list[RetrievalTask]:
    """Keep the tasks that are wanted by their names or by those of their groups; errors as in [`task_names`]."""
    there = list(tasks)
    names = task_names({task.name: task.groups for task in there}, wanted)
    return [task for task in there if task.name in names]
