"""Evaluations that are kept in a folder: what is there is not measured again, and nothing else goes on there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from tests.evaluation.conftest import evaluate

from mmemb_r1.evaluation import RetrievalTask, Settings, load_results, run_evaluation
from mmemb_r1.evaluation.atlas_tasks import atlas_tasks
from mmemb_r1.evaluation.encoders import BATCHES_AT_ONCE
from mmemb_r1.evaluation.report.html import render_html
from mmemb_r1.evaluation.run_folder import COLUMNS, read_query_rows, rows_path
from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = Settings(modes=("never", "always", "auto"), batch_size=1)
CITIES = [f"city {number}" for number in range(BATCHES_AT_ONCE + 4)]


@pytest.fixture(autouse=True)
def no_pages(monkeypatch):
    """Drawing takes a second for each run; report/test_html.py and the command's tests look at the page."""
    monkeypatch.setattr("mmemb_r1.evaluation.report.write_html", lambda run, path: None)


@pytest.fixture(scope="module")
def model(thinking):
    """Not to be changed."""
    return thinking()


@pytest.fixture
def tasks():
    """One whose candidates compete for every query, and one whose queries have their own and show pictures."""
    colors = ["red", "green", "blue"]
    return [
        RetrievalTask(
            name="where",
            metric="hit@1",
            groups={"kind": "text"},
            query_ids=CITIES,
            queries=[{"text": f"where is {city}?"} for city in CITIES],
            candidate_ids=CITIES,
            candidates=CITIES,
            relevance=[{city: 1.0} for city in CITIES],
            clusters=[f"country {row % 3}" for row in range(len(CITIES))],
        ),
        RetrievalTask(
            name="color",
            metric="ndcg_linear@5",
            groups={"kind": "image"},
            query_ids=colors,
            queries=[{"text": "which color?", "image": Image.new("RGB", (32, 32), color)} for color in colors],
            candidate_ids=colors,
            candidates=colors,
            relevance=[{color: 2.0} for color in colors],
            pools=[["red", "green"], ["green", "red"], ["blue", "red", "green"]],
        ),
    ]


@pytest.fixture
def embedded(monkeypatch):
    """How many inputs were embedded, by whether they thought."""
    seen: Counter[bool] = Counter()
    original = MMEmbR1Module.embed_batches

    def embed_batches(self, *args, **kwargs):
        for output in original(self, *args, **kwargs):
            seen.update((output["num_reasoning_tokens"] > 0).tolist())
            yield output

    monkeypatch.setattr(MMEmbR1Module, "embed_batches", embed_batches)
    return seen


def run(model, tasks, folder=None, settings=SETTINGS, **options):
    return run_evaluation(model, tasks, settings, output=folder, progress=False, **options)


def without_time(results):
    """What does not depend on the clock."""
    text = json.dumps({key: value for key, value in results.items() if key != "config"})
    kept = json.loads(text)
    for entry in [*kept["tasks"].values(), *kept["summary"].values()]:
        for numbers in entry["modes"].values():
            del numbers["seconds_per_query"], numbers["seconds_per_document"]
    return kept


def test_a_folder_holds_what_is_returned(model, tasks, tmp_path):
    results = run(model, tasks, tmp_path, config={"model": "tiny"})
    assert load_results(tmp_path / "results.json") == results
    assert without_time(results) == without_time(run(model, tasks))
    assert results["config"]["checkpoint"] and results["config"]["queries"] == len(CITIES) + 3
    assert {key: results["summary"][key]["n"] for key in results["summary"]} == {
        "text": len(CITIES), "image": 3, "all": len(CITIES) + 3,
    }  # fmt: skip
    for name, task in results["tasks"].items():
        for mode, numbers in task["modes"].items():
            kept = json.loads((tmp_path / "tasks" / name / f"{mode}.json").read_text())
            assert kept == numbers
            low, high = numbers["interval"]
            assert low <= numbers["score"] <= high
    means = [results["tasks"][name]["modes"]["auto"]["score"] for name in ("where", "color")]
    assert results["summary"]["all"]["modes"]["auto"]["score"] == pytest.approx(np.mean(means))


def test_rows_are_what_the_means_are_of(model, tasks, tmp_path):
    results = run(model, tasks, tmp_path, replace(SETTINGS, rationales=True))
    for task in tasks:
        for mode, numbers in results["tasks"][task.name]["modes"].items():
            rows = read_query_rows(rows_path(tmp_path, task.name, mode))
            assert list(rows) == list(COLUMNS)
            assert rows["query_id"].tolist() == list(task.query_ids)
            assert rows["score"].mean() == pytest.approx(numbers["score"])
            assert (1 / rows["rank"]).mean() == pytest.approx(numbers["mrr"])
            assert rows["reasoned"].mean() == pytest.approx(numbers["invocation_ratio"])
            assert rows["num_reasoning_tokens"].mean() == pytest.approx(numbers["mean_reasoning_tokens"])
            assert ((rows["margin"] > 0) == (rows["rank"] == 1)).all()
            assert ((0 < rows["alignment"]) & (rows["alignment"] < 1)).all()
            assert rows["query_text"].tolist() == [query["text"] for query in task.queries]
            assert [bool(text) for text in rows["rationale"]] == (rows["num_reasoning_tokens"] > 0).tolist()
            said = model.explain(list(task.queries), reasoning=mode)
            np.testing.assert_allclose(rows["gate_prob"], [one["gate_prob"] for one in said], atol=1e-5)
    own = read_query_rows(rows_path(tmp_path, "color", "never"))["cluster"].tolist()
    assert own == ["color/red", "color/green", "color/blue"], "queries of other tasks may have the same ids"
    assert set(read_query_rows(rows_path(tmp_path, "where", "never"))["cluster"]) == {
        "country 0",
        "country 1",
        "country 2",
    }


def test_without_being_asked_no_thoughts_are_kept(model, tasks, tmp_path):
    run(model, tasks[1:], tmp_path)
    table = pyarrow.parquet.read_table(rows_path(tmp_path, "color", "always"))
    assert table["rationale"].null_count == table["query_text"].null_count == table.num_rows == 3


class Killed(Exception):
    pass


@pytest.mark.parametrize("calls", [3, 9, *(pytest.param(calls, marks=pytest.mark.slow) for calls in (1, 6, 11))])
def test_a_killed_run_goes_on_and_embeds_nothing_twice(calls, model, tasks, embedded, tmp_path, monkeypatch):
    """Killed before one of the 12 calls of the model: in the middle of a side, between modes and between tasks."""
    whole = run(model, tasks, tmp_path / "whole")
    expected, explain, left = dict(embedded), model.explain, calls
    embedded.clear()

    def dies(*args, **kwargs):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return explain(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(model, "explain", dies)
        with pytest.raises(Killed):
            run(model, tasks, tmp_path / "killed")
    assert not (tmp_path / "killed" / "results.json").exists()
    assert 0 < embedded.total() < sum(expected.values())
    again = run(model, tasks, tmp_path / "killed")
    assert dict(embedded) == expected
    assert without_time(again) == without_time(whole)


def test_a_finished_run_is_read_and_its_inputs_are_not(model, tasks, embedded, tmp_path):
    first = run(model, tasks, tmp_path)
    embedded.clear()
    again = run(model, tasks, tmp_path)
    assert not embedded
    assert again["tasks"] == first["tasks"] and again["summary"] == first["summary"], "times too"

    class Unread(Sequence):
        def __len__(self):
            return len(CITIES)

        def __getitem__(self, row):
            raise AssertionError("an input was read")

    told = replace(tasks[0], data={"revision": "1"})
    run(model, [told], tmp_path / "told")
    run(model, [replace(told, queries=Unread(), candidates=Unread())], tmp_path / "told")


def test_another_run_is_refused(thinking, tasks, tmp_path):
    model, tasks = thinking(), tasks[1:]
    run(model, tasks, tmp_path)
    for settings, message in (
        (replace(SETTINGS, batch_size=2), "batch_size was 1, is now 2"),
        (replace(SETTINGS, modes=("never",)), "modes was "),
        (replace(SETTINGS, max_reasoning_tokens=2), "max_reasoning_tokens was None, is now 2"),
        (replace(SETTINGS, document_reasoning="auto"), "document_reasoning was 'never', is now 'auto'"),
    ):
        with pytest.raises(ValueError, match=f"was begun with other settings or data: {message}"):
            run(model, tasks, tmp_path, settings)
    with torch.no_grad():
        model[0].model.gate.output.bias.add_(1)
    with pytest.raises(ValueError, match="was begun with other settings or data: checkpoint was "):
        run(model, tasks, tmp_path)


def test_a_model_whose_weights_are_not_known_needs_a_name(oracle, pairs, candidates, tmp_path):
    """Or another one would be given the numbers of the first."""
    tasks, settings = atlas_tasks(pairs, candidates), Settings(modes=("never", "always"))
    with pytest.raises(
        ValueError, match="the weights of this Oracle are not known.*checkpoint='name of these weights'"
    ):
        run(oracle, tasks, tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()
    first = run(oracle, tasks, tmp_path / "run", settings, checkpoint="oracle 1")
    assert first["config"]["checkpoint"] == "oracle 1"
    oracle.calls.clear()
    run(oracle, tasks, tmp_path / "run", settings, checkpoint="oracle 1")
    assert not oracle.calls
    with pytest.raises(ValueError, match="checkpoint was 'oracle 1', is now 'oracle 2'"):
        run(oracle, tasks, tmp_path / "run", settings, checkpoint="oracle 2")
    assert run(oracle, tasks, settings=settings)["config"]["checkpoint"] is None
    evaluate(oracle, pairs, candidates, output=tmp_path / "atlas", checkpoint="oracle 1", progress=False)
    with pytest.raises(ValueError, match="the weights of this Oracle are not known"):
        evaluate(oracle, pairs, candidates, output=tmp_path / "atlas", progress=False)


def test_a_model_whose_weights_are_known_has_no_other_name(model, tasks, tmp_path):
    with pytest.raises(
        ValueError, match="'mine' was given for a MMEmbR1, which is known by its weights; leave it out"
    ):
        run(model, tasks, tmp_path, checkpoint="mine")


def test_other_data_are_refused(model, tasks, tmp_path):
    settings = replace(SETTINGS, modes=("never",))
    run(model, tasks, tmp_path, settings)
    where, color = tasks
    blue = Image.new("RGB", (32, 32), "navy")
    for changed, message in (
        (replace(where, queries=[*where.queries[:-1], {"text": "where?"}]), "where in .* digest was"),
        (replace(where, metric="hit@5"), "where in .* metric was 'hit@1', is now 'hit@5'"),
        (replace(where, relevance=[{CITIES[1]: 1.0}, *where.relevance[1:]]), "digest was"),
        (replace(color, pools=None), "color in .* digest was"),
        (replace(color, queries=[*color.queries[:2], {**color.queries[2], "image": blue}]), "digest was"),
        (replace(color, data={"revision": "2"}), "data.revision was not set, is now '2'|digest was"),
    ):
        with pytest.raises(ValueError, match=message):
            run(model, [changed], tmp_path, settings)
    run(model, tasks, tmp_path, settings)


def test_a_cache_gives_another_run_the_same_numbers_and_no_times(model, tasks, embedded, tmp_path):
    first = run(model, tasks, tmp_path / "one", cache=tmp_path / "cache")
    assert not (tmp_path / "one" / "cache").exists()
    embedded.clear()
    again = run(model, tasks, tmp_path / "two", cache=tmp_path / "cache")
    assert not embedded
    assert without_time(again) == without_time(first)
    for results, known in ((first, True), (again, False)):
        for entry in [*results["tasks"].values(), *results["summary"].values()]:
            sides = ("seconds_per_query", "seconds_per_document")
            seconds = [numbers[side] for numbers in entry["modes"].values() for side in sides]
            assert all((one is not None and one > 0) == known for one in seconds)


def test_candidates_that_tasks_share_are_embedded_once(model, tasks, embedded):
    where = tasks[0]
    run(model, [where, replace(where, name="again")], settings=replace(SETTINGS, modes=("never",)))
    assert embedded.total() == 3 * len(CITIES)
    embedded.clear()
    other = replace(where, name="again", candidate_prompt="Name the city.")
    run(model, [where, other], settings=replace(SETTINGS, modes=("never",)))
    assert embedded.total() == 4 * len(CITIES), "with an instruction they are others"


def test_candidates_think_where_that_is_asked_for(model, tasks, embedded):
    run(model, tasks[1:], settings=replace(SETTINGS, modes=("never",), document_reasoning="always"))
    assert embedded == {True: 3, False: 3}


def test_several_modes_of_candidates_in_one_run(model, tasks, embedded, tmp_path):
    """Each side is embedded once per mode of its own, and every pair scores as it does alone."""
    modes, documents = ("never", "auto"), ("never", "always")
    settings = replace(SETTINGS, modes=modes, document_reasoning=documents)
    together = run(model, tasks[1:], tmp_path / "together", settings)
    counted = embedded.copy()
    (name,) = together["tasks"]
    found = together["tasks"][name]["modes"]
    assert together["config"]["modes"] == list(found) == ["never", "never+always", "auto", "auto+always"]
    embedded.clear()
    for document in documents:
        alone = run(model, tasks[1:], settings=replace(settings, document_reasoning=document))
        for mode in modes:
            numbers = alone["tasks"][name]["modes"][mode]
            pair = dict(found[mode if document == "never" else f"{mode}+always"])
            for one in (numbers, pair):
                del one["seconds_per_query"], one["seconds_per_document"]
            assert pair == numbers
            assert pair["document_invocation_ratio"] == float(document == "always")
            assert (pair["mean_document_tokens"] > 0) == (document == "always")
    assert counted.total() < embedded.total(), "queries were embedded once for both"
    summary = together["summary"]["all"]["modes"]["auto+always"]
    assert summary["document_invocation_ratio"] == 1 and summary["mean_document_tokens"] > 0
    report = (tmp_path / "together" / "results.md").read_text()
    assert "docs think" in report and "the second that of the candidates" in report
    assert "candidates think" in render_html(tmp_path / "together")
    embedded.clear()
    run(model, tasks[1:], tmp_path / "together", settings)
    assert not embedded, "all was measured"
    rows_path(tmp_path / "together", name, "auto+always").with_suffix(".json").unlink()
    again = run(model, tasks[1:], tmp_path / "together", settings)
    assert without_time(again) == without_time(together)


@pytest.mark.parametrize("given", [(), ("never", "never"), ("never", "often")])
def test_modes_of_candidates_are_checked(given):
    with pytest.raises(ValueError, match="modes of the documents are|the mode 'often' is not known"):
        Settings(document_reasoning=given)


def test_no_image_is_measured_for_tasks_with_pictures(model, tasks, tmp_path):
    results = run(model, tasks, tmp_path, replace(SETTINGS, no_image=True))
    assert set(results["tasks"]["color"]["no_image"]) == {"never", "always"}
    assert "no_image" not in results["tasks"]["where"]
    assert run(model, tasks, tmp_path, replace(SETTINGS, no_image=True))["tasks"] == results["tasks"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"x"), r"always.parquet can't be read: .* ends in .json and evaluate again"),
        (lambda path: path.unlink(), "always.parquet can't be read"),
        (
            lambda path: pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).drop(["margin"]), path),
            "has no column 'margin'",
        ),
        (lambda path: pyarrow.parquet.write_table(pyarrow.parquet.read_table(path)[:0], path), "has no rows"),
        (
            lambda path: pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).take([0, 1, 1]), path),
            "holds a query twice",
        ),
    ],
)
def test_damaged_rows_are_told(damage, message, model, tasks, tmp_path):
    first = run(model, tasks[1:], tmp_path)
    damage(rows_path(tmp_path, "color", "always"))
    with pytest.raises(ValueError, match=message):
        run(model, tasks[1:], tmp_path)
    (tmp_path / "tasks" / "color" / "always.json").unlink()
    assert without_time(run(model, tasks[1:], tmp_path)) == without_time(first)


@pytest.mark.parametrize("name", ["a/b", "..", "../x"])
def test_names_that_lead_out_of_the_folder_are_refused(name, model, tasks, tmp_path):
    with pytest.raises(ValueError, match="can't be the name of a file"):
        run(model, [replace(tasks[0], name=name)], tmp_path)


def test_no_tasks_and_two_of_one_name_are_refused(model, tasks):
    with pytest.raises(ValueError, match="no task was given"):
        run(model, [])
    with pytest.raises(ValueError, match="two of the tasks are called 'color'"):
        run(model, [tasks[1], tasks[1]], settings=replace(SETTINGS, modes=("never",)))
