"""Readers by name and by import path: what they read, choose and refuse."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from mmemb_r1.evaluation import RetrievalTask, TaskSource, read_tasks, run_evaluation
from mmemb_r1.evaluation.readers import READERS
from mmemb_r1.evaluation.tasks import select_tasks


def task(name, group="simple", queries=1):
    ids = [f"q{number}" for number in range(queries)]
    return RetrievalTask(
        name,
        "hit@1",
        {"complexity": group},
        ids,
        [{"text": one} for one in ids],
        ["Lima"],
        [{"text": "Lima"}],
        [{"Lima": 1.0}] * queries,
    )


@pytest.fixture
def my_readers(monkeypatch):
    """A module of one's own with a reader that yields a task per word of its source."""
    module = ModuleType("my_readers")

    def words(source, group="simple"):
        for name in source.split():
            yield task(name, group, queries=3)

    module.words = words
    monkeypatch.setitem(sys.modules, "my_readers", module)


def names_of(source):
    return [one.name for one in source.tasks]


def test_tasks_are_chosen_by_name_or_group():
    tasks = [task("a"), task("b", "multi-hop"), task("c")]
    for wanted, names in ((["b"], ["b"]), (["simple"], ["a", "c"]), (["c", "multi-hop"], ["b", "c"])):
        assert [one.name for one in select_tasks(tasks, wanted)] == names
    with pytest.raises(ValueError, match="there is no task or group 'd'; allowed: a, b, c, multi-hop, simple"):
        select_tasks(tasks, ["d"])


def test_a_reader_of_ones_own_goes_by_its_import_path(my_readers):
    source = read_tasks("my_readers:words", "fact flag")
    assert names_of(source) == ["fact", "flag"]
    assert source.noted == {"dataset": "fact flag", "reader": "my_readers:words"}
    assert names_of(read_tasks("my_readers:words", "fact flag", names=["flag"])) == ["flag"]
    (one,) = read_tasks("my_readers:words", "fact", group="hard").tasks
    assert one.groups == {"complexity": "hard"}


def test_its_tasks_are_measured_like_any_others(my_readers, oracle):
    results = run_evaluation(oracle, read_tasks("my_readers:words", "fact flag", limit=2), progress=False)
    assert {name: entry["n"] for name, entry in results["tasks"].items()} == {"fact": 2, "flag": 2}
    assert (results["config"]["reader"], results["config"]["limit"]) == ("my_readers:words", 2)


def test_what_a_source_notes_and_claims_is_in_the_results(oracle):
    source = TaskSource([task("fact")], {"dataset": "mine"}, lambda results: {"never": len(results["tasks"])})
    results = run_evaluation(oracle, source, config={"model": "oracle"}, progress=False)
    assert (results["config"]["dataset"], results["config"]["model"]) == ("mine", "oracle")
    assert results["overall"] == {"never": 1}
    assert "overall" not in run_evaluation(oracle, [task("fact")], progress=False)


def test_unknown_readers_are_refused(my_readers):
    with pytest.raises(
        ValueError, match="there is no reader 'atlsa'; allowed: atlas, mmeb, pairs, or the import path"
    ):
        read_tasks("atlsa", "x")
    with pytest.raises(ValueError, match="my_readers:letters"):
        read_tasks("my_readers:letters", "x")
    with pytest.raises(ValueError, match="limit 0: at least 1"):
        read_tasks("my_readers:words", "x", limit=0)


@pytest.mark.parametrize("name", READERS)
def test_every_reader_of_the_table_says_what_is_missing(name, tmp_path):
    with pytest.raises(ValueError, match="no such file|there is no folder|holds no Atlas"):
        read_tasks(name, tmp_path / "missing")
