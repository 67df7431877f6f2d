"""Means over tasks, with intervals that draw whole clusters of queries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmemb_r1.evaluation.run_folder import Columns
from mmemb_r1.evaluation.statistics import clustered_bootstrap

ALL = "all"
NO_MEANS = ("interval", "no_image")


def interval(scores: Any, clusters: Any, tasks: Sequence[str] | None = None) -> list[float]:
    """Ends of the 95 % interval of the mean of `(N,)` scores, or of the mean over tasks of their means."""
    found = clustered_bootstrap(scores, list(clusters), tasks)
    return [found.low, found.high]


def summarise(
    tasks: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Mapping[str, Columns]]
) -> dict[str, dict[str, Any]]:
    """
    Means over the tasks of each group, and over all of them under `all`, every task with the same weight.

    Args:
        tasks: name -> what was measured of a task, as in results; a group is a value of its `groups`.
        rows: name -> mode -> its rows, of which `score` and `cluster` are read.

    Returns:
        Group -> `tasks` and `n` (how many tasks and queries), `modes` (per mode the means of what all its tasks have,
        and the `interval` of the score), and `majority` if all have it. With a `None` among them the mean is `None`.
    """
    members = members_of({name: result["groups"] for name, result in tasks.items()})
    return {group: _summary(names, tasks, rows) for group, names in members.items()}


def members_of(groups: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """
    Which tasks the means over tasks are of, from the `groups` of each: the tasks of every group, and all of them.

    >>> members_of({"fact": {"complexity": "simple"}, "flag": {"complexity": "multi-hop"}})
    {'simple': ['fact'], 'multi-hop': ['flag'], 'all': ['fact', 'flag']}
    """
    members: dict[str, list[str]] = defaultdict(list)
    for name, of_task in groups.items():
        for group in of_task.values():
            members[group].append(name)
    return {**members, ALL: list(groups)}


def chosen(groups: Mapping[str, Mapping[str, str]], wanted: Iterable[str]) -> list[str]:
    """
    The tasks that are wanted by their names or by those of their groups, from the `groups` of each; in their order.

    Raises:
        ValueError: if a name is neither, or there are none.

    >>> groups = {"fact": {"complexity": "simple"}, "flag": {"complexity": "multi-hop"}}
    >>> chosen(groups, ["simple"]), chosen(groups, ["flag", "fact"])
    (['fact'], ['fact', 'flag'])
    """
    asked = list(wanted)
    known = {*groups, *(group for of_task in groups.values() for group in of_task.values())}
    if not asked or (unknown := [name for name in asked if name not in known]):
        what = f"there is no task or group {unknown[0]!r}" if asked else "no task was named"
        raise ValueError(f"{what}; allowed: {', '.join(sorted(known))}")
    return [name for name, of_task in groups.items() if {name, *of_task.values()}.intersection(asked)]


def _summary(
    names: Sequence[str], tasks: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Mapping[str, Columns]]
) -> dict[str, Any]:
    results = [tasks[name] for name in names]
    summary: dict[str, Any] = {"tasks": len(names), "n": sum(result["n"] for result in results), "modes": {}}
    for mode in results[0]["modes"]:
        numbers = [result["modes"][mode] for result in results]
        own = [rows[name][mode] for name in names]
        summary["modes"][mode] = {
            key: _mean([one[key] for one in numbers])
            for key in numbers[0]
            if key not in NO_MEANS and all(key in one for one in numbers)
        } | {
            "interval": interval(
                np.concatenate([part["score"] for part in own]),
                np.concatenate([part["cluster"] for part in own]),
                [name for name, part in zip(names, own, strict=True) for _ in part["score"]],
            )
        }
    if all("majority" in result for result in results):
        summary["majority"] = _mean([result["majority"] for result in results])
    return summary


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
