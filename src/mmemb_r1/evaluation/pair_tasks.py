"""A table of pairs as retrieval tasks: every query among the targets of its task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmemb_r1.content import content_key, given_parts
from mmemb_r1.evaluation.tasks import RetrievalTask, rows_by

if TYPE_CHECKING:
    from datasets import Dataset


METRIC = "hit@1"
ONE_TASK = "pairs"  # the name of the task of a table that names none


def pair_tasks(pairs: Dataset, data: Mapping[str, Any] | None = None) -> list[RetrievalTask]:
    """
    Pairs as tasks, sorted by name. Equal targets are one candidate, and the targets of equal queries are right for
    each of them.

    Args:
        pairs: columns `pair_id`, `query` and `target`; `task`, `complexity` (a group) and `entity` (what each query is
            about) where they are there.
        data: says which table this is, see [`RetrievalTask`]. Default: its content is looked into.

    Raises:
        ValueError: if there are no pairs, or a pair id stands twice in a task.
    """
    if not len(pairs):
        raise ValueError("there are no pairs; at least one is needed")
    rows_of_task = rows_by(pairs["task"] if "task" in pairs.column_names else [ONE_TASK] * len(pairs))
    return [_task(name, pairs.select(rows), data or {}) for name, rows in sorted(rows_of_task.items())]


def _task(name: str, pairs: Dataset, data: Mapping[str, Any]) -> RetrievalTask:
    ids = list(pairs["pair_id"])
    queries, targets = ([given_parts(value) for value in pairs[side]] for side in ("query", "target"))
    query_keys, target_keys = ([content_key(value) for value in values] for values in (queries, targets))
    first: dict[bytes, int] = {}
    for row, key in enumerate(target_keys):
        first.setdefault(key, row)
    right: dict[bytes, set[str]] = defaultdict(set)
    for query, target in zip(query_keys, target_keys, strict=True):
        right[query].add(ids[first[target]])
    complexities = set(pairs["complexity"]) if "complexity" in pairs.column_names else set()
    return RetrievalTask(
        name=name,
        metric=METRIC,
        groups={"complexity": complexities.pop()} if len(complexities) == 1 else {},
        query_ids=ids,
        queries=queries,
        candidate_ids=[ids[row] for row in first.values()],
        candidates=[targets[row] for row in first.values()],
        relevance=[dict.fromkeys(sorted(right[key]), 1.0) for key in query_keys],
        clusters=list(pairs["entity"]) if "entity" in pairs.column_names else None,
        data=data,
    )
