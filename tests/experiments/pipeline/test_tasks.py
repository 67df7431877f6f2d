from __future__ import annotations

from datasets import Dataset

from experiments.pipeline.tasks import PICTURE_TARGETS, POOLED, at_most, of_tasks

PAIRS = Dataset.from_dict({"task": ["a", "b", "a", "a", "b"], "number": [0, 1, 2, 3, 4]})


def test_at_most_so_many_of_each_task():
    assert at_most(PAIRS, 2)["number"][:] == [0, 1, 2, 4]
    assert at_most(PAIRS, 9)["number"][:] == [0, 1, 2, 3, 4]


def test_pairs_of_some_tasks():
    assert of_tasks(PAIRS, ("b", "c"))["number"][:] == [1, 4]


def test_targets_of_two_tasks_have_rationales(small_atlas):
    """What the row without mixed terms is judged on."""
    pairs = small_atlas.pairs["train"]
    both = {
        task
        for task, *sides in zip(pairs["task"], pairs["query_rationale"], pairs["target_rationale"], strict=True)
        if all(sides) and task in POOLED
    }
    assert both == set(PICTURE_TARGETS)
