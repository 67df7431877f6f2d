"""Tables of pairs as retrieval tasks."""

from __future__ import annotations

import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from mmemb_r1.evaluation import read_tasks
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


def test_a_query_with_negatives_competes_with_these_alone():
    rows = [
        pair(0, text("Peru?"), text("Lima"), negatives=[text("Cuzco"), text("Paris"), text("Lima")]),
        pair(1, text("France?"), text("Paris"), negatives=[text("Lyon"), text("Cuzco")]),
        pair(2, text("Italy?"), text("Rome"), negatives=None),
    ]
    (task,) = pair_tasks(table(rows, negatives=List(INPUT)))
    inputs = dict(zip(task.candidate_ids, (value["text"] for value in task.candidates), strict=True))
    assert inputs == {
        "p0": "Lima", "p1": "Paris", "p2": "Rome", "p0/negative-0": "Cuzco", "p1/negative-0": "Lyon",
    }  # fmt: skip
    assert [[inputs[one] for one in pool] for pool in task.pools] == [
        ["Lima", "Cuzco", "Paris"],
        ["Paris", "Lyon", "Cuzco"],
        ["Lima", "Paris", "Rome"],
    ]
    assert task.relevance == [{"p0": 1.0}, {"p1": 1.0}, {"p2": 1.0}]


def test_no_negatives_are_no_pools():
    (task,) = pair_tasks(table([pair(0, text("Peru?"), text("Lima"), negatives=[])], negatives=List(INPUT)))
    assert task.pools is None and list(task.candidate_ids) == ["p0"]


def test_an_input_without_content_is_named():
    rows = [pair(0, text("Peru?"), text("Lima")), pair(1, text("France?"), text(None))]
    with pytest.raises(ValueError, match="the pair 'p1' has no target; give it a text"):
        pair_tasks(table(rows))


def test_a_file_is_read_by_the_reader_of_pairs(tmp_path):
    strings = dict.fromkeys(("task",), Value("string"))
    rows = [pair(number, text(f"{number}?"), text(f"{number}"), task=f"t{number % 2}") for number in range(4)]
    table(rows, **strings).to_parquet(tmp_path / "pairs.parquet")
    source = read_tasks("pairs", tmp_path / "pairs.parquet", names=["t1"])
    assert [task.name for task in source.tasks] == ["t1"] and source.noted == {"dataset": "pairs.parquet"}
    table(rows, **strings).remove_columns("target").to_parquet(tmp_path / "half.parquet")
    with pytest.raises(ValueError, match="half.parquet has no column 'target'; it has pair_id, query, task"):
        read_tasks("pairs", tmp_path / "half.parquet")
    Dataset.from_list([{"pair_id": "a", "query": 1.5, "target": "Lima"}]).to_parquet(tmp_path / "words.parquet")
    with pytest.raises(ValueError, match="the column 'query' holds float64; allowed: an object with any of the keys"):
        read_tasks("pairs", tmp_path / "words.parquet")
    (tmp_path / "text.parquet").write_text("pairs")
    with pytest.raises(ValueError, match="text.parquet can't be read"):
        read_tasks("pairs", tmp_path / "text.parquet")


def test_paths_start_from_the_folder_of_the_file_or_from_the_base(tmp_path, monkeypatch):
    rows = [{"pair_id": "a", "query": {"image": "a.png"}, "target": {"text": "Lima"}}]
    rows[0]["negatives"] = [{"image": "b.png"}]
    (tmp_path / "data").mkdir()
    Dataset.from_list(rows).to_parquet(tmp_path / "data" / "pairs.parquet")
    monkeypatch.chdir(tmp_path)
    for options, folder in (({}, tmp_path / "data"), ({"base": tmp_path / "pictures"}, tmp_path / "pictures")):
        (task,) = read_tasks("pairs", "data/pairs.parquet", **options).tasks
        assert task.queries == [{"image": f"{folder}/a.png"}]
        assert task.candidates == [{"text": "Lima"}, {"image": f"{folder}/b.png"}]
