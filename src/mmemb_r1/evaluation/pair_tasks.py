"""Read a table of pairs as retrieval tasks: every query among the targets of its task, or among its own negatives."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.content import content_key, given_parts
from mmemb_r1.evaluation.tasks import RetrievalTask, TaskSource, rows_by, select_tasks
from mmemb_r1.tables.columns import ColumnMap, columns_hint
from mmemb_r1.tables.pairs import open_pairs, table_name

if TYPE_CHECKING:
    from datasets import Dataset


METRIC = "hit@1"
ONE_TASK = "pairs"  # the name of the task of a table that names none
COLUMNS = ("query", "target", "pair_id")


def read_pair_tasks(
    path: str | os.PathLike[str],
    *,
    names: Sequence[str] | None = None,
    base: Path | None = None,
    columns: ColumnMap | None = None,
) -> TaskSource:
    """
    Read the tasks of a table with the columns of [`pair_tasks`].

    Args:
        path: the table, see [`~mmemb_r1.tables.pairs.open_pairs`] for what it may be, and for `base` and `columns`.
        names: of tasks or groups. Default: all.

    Raises:
        ValueError: if there is no such table, or it holds no pairs, or no such task.
    """
    pairs = open_pairs(path, columns, base)
    if missing := [name for name in COLUMNS if name not in pairs.column_names]:
        raise ValueError(
            f"{path} has no column {missing[0]!r}; it has {', '.join(pairs.column_names)}; give a table of pairs, see "
            f"docs/evaluation.md.{columns_hint(pairs.column_names)}"
        )
    tasks = pair_tasks(pairs)
    return TaskSource(tasks if names is None else select_tasks(tasks, names), {"dataset": table_name(path)})


def pair_tasks(pairs: Dataset, data: Mapping[str, Any] | None = None) -> list[RetrievalTask]:
    """
    Turn pairs into tasks, sorted by name. Equal targets are one candidate, and the targets of equal queries are right
    for each of them.

    Args:
        pairs: columns `pair_id`, `query` and `target`; where they are there `task`, `complexity` (a group), `entity`
            (what each query is about) and `negatives` (a list of inputs). A query that has negatives competes among
            these and its targets, any other one among all targets of its task.
        data: says which table this is, see [`RetrievalTask`]. Default: its content is looked into.

    Raises:
        ValueError: if there are no pairs, a query or a target is empty, or a pair id stands twice in a task.
    """
    if not len(pairs):
        raise ValueError("there are no pairs; at least one is needed")
    rows_of_task = rows_by(pairs["task"] if "task" in pairs.column_names else [ONE_TASK] * len(pairs))
    return [_task(name, pairs.select(rows), data or {}) for name, rows in sorted(rows_of_task.items())]


def _task(name: str, pairs: Dataset, data: Mapping[str, Any]) -> RetrievalTask:
    ids = list(pairs["pair_id"])
    queries, targets = (_inputs(pairs, side) for side in ("query", "target"))
    query_keys = [content_key(value) for value in queries]
    candidates: dict[bytes, tuple[str, Any]] = {}  # content -> id, input
    right: dict[bytes, dict[str, float]] = defaultdict(dict)
    for pair_id, query, target in zip(ids, query_keys, targets, strict=True):
        candidate, _ = candidates.setdefault(content_key(target), (pair_id, target))
        right[query][candidate] = 1.0
    relevance = [dict(sorted(right[key].items())) for key in query_keys]
    of_targets = [candidate for candidate, _ in candidates.values()]
    pools: list[list[str]] | None = None
    if "negatives" in pairs.column_names and any(pairs["negatives"]):
        pools = []
        for pair_id, own, negatives in zip(ids, relevance, pairs["negatives"], strict=True):
            pool = dict(own)
            for number, value in enumerate(map(given_parts, negatives or [])):
                unique = f"{pair_id}/negative-{number}"
                pool.setdefault(candidates.setdefault(content_key(value), (unique, value))[0], 0.0)
            pools.append(list(pool) if negatives else of_targets)
    complexities = set(pairs["complexity"]) if "complexity" in pairs.column_names else set()
    return RetrievalTask(
        name=name,
        metric=METRIC,
        groups={"complexity": complexities.pop()} if len(complexities) == 1 else {},
        query_ids=ids,
        queries=queries,
        candidate_ids=[candidate for candidate, _ in candidates.values()],
        candidates=[value for _, value in candidates.values()],
        relevance=relevance,
        pools=pools,
        clusters=list(pairs["entity"]) if "entity" in pairs.column_names else None,
        data=data,
    )


def _inputs(pairs: Dataset, side: str) -> list[Any]:
    kind = pairs.features[side]
    if not isinstance(kind, dict):
        raise ValueError(
            f"the column {side!r} holds {getattr(kind, 'dtype', kind)}; allowed: an object with any of the keys text, "
            "image, video, instruction"
        )
    values = [given_parts(value or {}) for value in pairs[side]]
    for pair_id, value in zip(pairs["pair_id"], values, strict=True):
        if not value.keys() - {"instruction"}:
            raise ValueError(
                f"the pair {pair_id!r} has no {side}; give it a text, an image or a video, or leave the row out"
            )
    return values
