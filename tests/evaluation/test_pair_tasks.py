"""Tables of pairs as retrieval tasks."""

from __future__ import annotations

import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from mmemb_r1.evaluation.pair_tasks import pair_tasks

INPUT = {"text": Value("string"), "image": List(Image()), "instruction": Value("string")}


def text(value, *images):
    return {"text": value, "image": list(images), "instruction": None}


def table(rows, **columns):
    features = Features({"pair_id": Value("string"), "query": INPUT, "target": INPUT} | columns)
    return Dataset.from_list(rows, features=features)


def pair(number, query, target, **more):
    return {"pair_id": f"p{number}", "query": query, "target": target, **more}


def test_queries_compete_for_the_targets_of_their_task():
    rows = [
        pair(0, text("capital of Peru?"), text("Lima"), task="capital", entity="PE", complexity="simple"),
        pair(1, text("capital of France?"), text("Paris"), task="capital", entity="FR", complexity="simple"),
        pair(
            2,
            text("flag?", PILImage.new("RGB", (8, 8), "red")),
            text("Peru"),
            task="name",
            entity="PE",
            complexity="x",
        ),
    ]
    strings = dict.fromkeys(("task", "entity", "complexity"), Value("string"))
    capital, name = pair_tasks(table(rows, **strings), {"file": "pairs"})
    assert (capital.name, name.name, capital.metric) == ("capital", "name", "hit@1")
    assert list(capital.query_ids) == ["p0", "p1"] and list(capital.candidate_ids) == ["p0", "p1"]
    assert list(capital.candidates) == [{"text": "Lima"}, {"text": "Paris"}]
    assert list(capital.relevance) == [{"p0": 1.0}, {"p1": 1.0}]
    assert list(capital.clusters) == ["PE", "FR"] and capital.groups == {"complexity": "simple"}
    assert name.queries[0]["image"][0].size == (8, 8)
    assert name.data == {"file": "pairs"}


def test_equal_targets_are_one_candidate_and_equal_queries_have_all_their_targets():
    rows = [
        pair(0, text("a city"), text("Lima")),
        pair(1, text("in France"), text("Paris")),
        pair(2, text("a city"), text("Paris")),
        pair(3, text("in Peru"), text("Lima")),
    ]
    (task,) = pair_tasks(table(rows))
    assert task.name == "pairs" and task.groups == {} and task.clusters is None
    assert list(task.candidate_ids) == ["p0", "p1"]
    both = {"p0": 1.0, "p1": 1.0}
    assert list(task.relevance) == [both, {"p1": 1.0}, both, {"p0": 1.0}]


def test_a_task_of_several_complexities_is_in_no_group():
    rows = [pair(row, text(f"{row}?"), text(f"{row}"), complexity=name) for row, name in enumerate("ab")]
    (task,) = pair_tasks(table(rows, complexity=Value("string")))
    assert task.groups == {}


def test_an_empty_table():
    with pytest.raises(ValueError, match="there are no pairs"):
        pair_tasks(table([pair(0, text("a"), text("b"))]).select([]))
