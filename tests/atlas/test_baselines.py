from __future__ import annotations

import pytest
from datasets import Dataset
from PIL import Image

from mmemb_r1.atlas import majority_baseline, no_image_baseline, pair_features
from mmemb_r1.atlas.tables import input_feature

PICTURE = Image.new("RGB", (4, 4))


def pairs(*rows):
    """Make a table of (task, text, number of pictures, answer)."""
    from datasets import Features, Value

    columns = {"task": Value("string"), "query": input_feature(), "target_id": Value("string")}
    return Dataset.from_list(
        [
            {
                "task": task,
                "query": {"text": text, "image": [PICTURE] * number, "instruction": None},
                "target_id": answer,
            }
            for task, text, number, answer in rows
        ],
        features=Features(columns),
    )


def test_majority_baseline():
    train = Dataset.from_dict({"task": ["a", "a", "a", "b"], "target_id": ["x", "y", "x", "z"]})
    evaluated = Dataset.from_dict({"task": ["a", "a", "b", "c"], "target_id": ["x", "y", "z", "z"]})
    assert majority_baseline(train, evaluated) == {"a": 0.5, "b": 1.0, "c": 0.0}


def test_no_image_baseline():
    """By hand: "which?" is answered by x, "other?" by y, and a text that was not trained by x, the task's majority."""
    train = pairs(*[("a", "which?", 1, "x")] * 3, *[("a", "other?", 1, "y")] * 2, ("a", "other?", 1, "x"))
    asked = pairs(("a", "which?", 1, "x"), ("a", "other?", 1, "x"), ("a", "other?", 1, "y"), ("a", "new?", 1, "x"))
    assert no_image_baseline(train, asked) == {"a": 0.75}
    assert majority_baseline(train, asked) == {"a": 0.75}
    assert no_image_baseline(train, asked.select([2])) == {"a": 1.0}
    assert majority_baseline(train, asked.select([2])) == {"a": 0.0}


def test_the_no_image_baseline_keeps_tasks_apart_and_is_of_questions_with_pictures():
    train = pairs(("a", "which?", 1, "x"), ("b", "which?", 0, "y"), ("c", "which?", 2, "z"))
    asked = pairs(("a", "which?", 1, "x"), ("b", "which?", 0, "y"), ("c", "which?", 2, "x"), ("d", "which?", 1, "x"))
    assert no_image_baseline(train, asked) == {"a": 1.0, "c": 0.0, "d": 0.0}


def test_baselines_of_the_new_tasks(small_atlas):
    """A drawing out of a group that was not trained is no training answer; all else is a share."""
    assert small_atlas.pairs["train"].features == pair_features()
    for baseline in (majority_baseline, no_image_baseline):
        found = baseline(small_atlas.pairs["train"], small_atlas.pairs["test"])
        assert found["same-tone"] == found["same-colours"] == 0.0
        assert found["same-clock"] == pytest.approx(1 / 12)  # any one of the twelve
        assert {"mixed-sum", "mixed-time"} <= set(found)
