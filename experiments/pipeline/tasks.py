"""Name the groups of Atlas's tasks that the phases use, and how often each task is drawn."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from mmemb_r1.atlas.drawings import PERCEPTUAL_TASKS

if TYPE_CHECKING:
    from datasets import Dataset


FLAGS = tuple(f"flag-{relation}" for relation in ("capital", "region", "currency", "language", "tld"))
NEIGHBOURS = ("neighbour-capital", "neighbour-currency")
MULTI_HOP = (*FLAGS, *NEIGHBOURS, "fact-flag")
# Those of the pool whose targets are pictures, which can have rationales too.
PICTURE_TARGETS = ("name-picture", "fact-flag")
# Those whose rationales come from the pool of workers; the others are rehearsed with their own.
POOLED = (*MULTI_HOP, "name-picture")
# Left out of the warm-up, so that no arm has seen a question of more than one step before.
LATER = ("flag-", "neighbour-", "compare-", "digits-", "mixed-", "fact-flag")

# How often each task of the joint phase after a warm-up is drawn, relative to the others. Almost half of the draws go
# to questions of several steps, which are new; what the warm-up taught is rehearsed with most of the rest. Without
# that, flags would be told from their shape in a few hundred pictures, and the facts of the held-out countries, which
# occur as text only, would be forgotten.
JOINT_TASK_WEIGHTS = {
    **dict.fromkeys(FLAGS, 8.0),
    **dict.fromkeys(NEIGHBOURS, 4.0),
    "fact-flag": 3.0,
    "name-picture": 4.0,
    "picture-name-flag": 17.0,
    "picture-name-object": 9.0,
    "fact-capital": 2.8,
    "fact-currency": 2.8,
    "fact-tld": 2.8,
    "fact-language": 2.8,
    "fact-region": 2.8,
    "fact-country": 1.0,
    "fact-largest-neighbour": 2.0,
    "fact-smallest-neighbour": 2.0,
    **dict.fromkeys(PERCEPTUAL_TASKS, 1.7),
    "mixed-sum": 1.7,
    "mixed-time": 1.7,
}


def of_tasks(pairs: Dataset, tasks: Collection[str]) -> Dataset:
    """The pairs of some tasks, as a table of its own."""
    rows = [row for row, task in enumerate(pairs["task"]) if task in tasks]
    return pairs.select(rows).flatten_indices()


def at_most(pairs: Dataset, number: int) -> Dataset:
    """The pairs with no more than so many of each task, the first ones, as a table of its own."""
    taken: dict[str, int] = {}
    rows = []
    for row, task in enumerate(pairs["task"]):
        taken[task] = taken.get(task, 0) + 1
        if taken[task] <= number:
            rows.append(row)
    return pairs.select(rows).flatten_indices()
