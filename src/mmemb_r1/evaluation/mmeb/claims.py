"""Compute means over MMEB's tasks: such a mean is a claim about all of them, and refused where one is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmemb_r1.evaluation.mmeb.catalogue import GROUPS, NUM_TASKS, OLD_PAGES, TASKS, group_named, task_named


class TaskScore(NamedTuple):
    """Holds a task's main metric, from 0 to 1, and over how many queries it was measured."""

    score: float
    num_queries: int


def scores_of(results: Mapping[str, Any], mode: str) -> dict[str, TaskScore]:
    """
    Take the MMEB-V2 scores of one reasoning mode out of results.

    Raises:
        ValueError: if a task is unknown, was scored by another metric than its own, or lacks the mode.
    """
    scores = {}
    for name, entry in results["tasks"].items():
        task = task_named(name)
        if entry["metric"] != task.metric:
            raise ValueError(f"{name} was scored by {entry['metric']}; MMEB-V2 scores it by {task.metric}")
        if mode not in entry["modes"]:
            raise ValueError(f"{name} was not run in the mode {mode!r}; it was in {', '.join(entry['modes'])}")
        scores[name] = TaskScore(float(entry["modes"][mode]["score"]), int(entry["n"]))
    return scores


def overall(scores: Mapping[str, TaskScore]) -> float:
    """
    Compute MMEB-V2's overall: the plain mean over its 78 tasks, whatever their groups and sizes. Variants that don't
    count are left aside.

    Raises:
        ValueError: if a task is missing, has another number of queries than MMEB-V2 or an impossible score, old and
            fixed page tasks are mixed, or a name is unknown.
    """
    return _mean(scores, tuple(TASKS), "overall")


def overall_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """Compute the `overall` of each mode of a run, or say under `refused` why there is none."""
    try:
        return {mode: overall(scores_of(results, mode)) for mode in results["config"]["modes"]}
    except ValueError as error:  # of a run of some tasks or queries, which says so
        return {"refused": str(error)}


def group_mean(scores: Mapping[str, TaskScore], group: str) -> float:
    """Average over the tasks of a modality (`"video"`) or a meta-task (`"image/qa"`); checks as in [`overall`]."""
    return _mean(scores, group_named(group), group)


def group_means(scores: Mapping[str, TaskScore]) -> dict[str, float]:
    """Average over every modality and meta-task that is complete; `group_mean` says why another one is not there."""
    _check(scores)
    return {group: _mean(scores, names, group) for group, names in GROUPS.items() if not _obstacles(scores, names)}


def page_names(names: Sequence[str] | Mapping[str, Any]) -> dict[str, str]:
    """
    Map the names in use to those of the page tasks that are meant by them: the old ones if these are there.

    Raises:
        ValueError: if fixed ones are there, too.
    """
    old = [name for name in OLD_PAGES.values() if name in names]
    fixed = [name for name in OLD_PAGES if name in names]
    if old and fixed:
        raise ValueError(
            f"{old[0]} is of the old page data and {fixed[0]} of the fixed ones: their scores say nothing together. "
            "Leave one kind out."
        )
    return OLD_PAGES if old else {}


def _mean(scores: Mapping[str, TaskScore], names: Sequence[str], what: str) -> float:
    _check(scores)
    if obstacles := _obstacles(scores, names):
        raise ValueError(f"no mean of {what}, {len(names)} of the {NUM_TASKS} tasks: {'; '.join(obstacles)}")
    renamed = page_names(scores)
    return math.fsum(scores[renamed.get(name, name)].score for name in names) / len(names)


def _check(scores: Mapping[str, TaskScore]) -> None:
    for name, (score, _) in scores.items():
        task_named(name)
        if not 0 <= score <= 1:  # also false for NaN
            raise ValueError(f"the score of {name} is {score}; it has to be between 0 and 1")
    page_names(scores)


def _obstacles(scores: Mapping[str, TaskScore], names: Sequence[str]) -> list[str]:
    """List why there is no mean of these tasks, known by their names in use."""
    renamed = page_names(scores)
    meant = [renamed.get(name, name) for name in names]
    obstacles = []
    if missing := [name for name in meant if name not in scores]:
        obstacles.append(f"missing are {len(missing)}: {', '.join(missing)}")
    obstacles += [
        f"{name} has {scores[name].num_queries} queries instead of {task_named(name).num_queries}"
        for name in meant
        if name in scores and scores[name].num_queries != task_named(name).num_queries
    ]
    return obstacles
