from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console
from tests.evaluation.conftest import evaluate

from mmemb_r1.evaluation import load_results, results_table, save_results
from mmemb_r1.evaluation.atlas_tasks import atlas_tasks
from mmemb_r1.evaluation.statistics import clustered_bootstrap

MODES = ("never", "always", "auto")


def test_each_mode_is_measured_per_task(oracle, pairs, candidates):
    results = evaluate(oracle, pairs, candidates, modes=MODES, progress=False)
    flag, fact = results["tasks"]["flag"], results["tasks"]["fact"]
    assert (flag["n"], flag["candidates"], flag["complexity"]) == (3, 4, "multi-hop")
    assert [flag["modes"][mode]["hit@1"] for mode in MODES] == [0.0, 1.0, 1.0]
    assert [fact["modes"][mode]["hit@1"] for mode in MODES] == [1.0, 1.0, 1.0]
    # not knowing, the oracle is as close to every answer: the pessimistic rank is the last
    assert flag["modes"]["never"]["mrr"] == pytest.approx(1 / 4)
    assert [fact["modes"][mode]["invocation_ratio"] for mode in MODES] == [0.0, 1.0, 0.0]
    assert [flag["modes"][mode]["mean_reasoning_tokens"] for mode in MODES] == [0.0, 5.0, 5.0]
    assert all(numbers["seconds_per_query"] >= 0 for numbers in flag["modes"].values())


def test_candidates_are_embedded_once_and_directly(oracle, pairs, candidates):
    evaluate(oracle, pairs, candidates, modes=MODES, progress=False)
    about_candidates = [reasoning for reasoning, inputs in oracle.calls if {"text": "Cairo"} in inputs]
    assert about_candidates == ["never"]
    assert not any({"text": "x"} in inputs for _, inputs in oracle.calls), "a set without queries was embedded"


def test_no_image_takes_the_picture_away_and_nothing_else(oracle, pairs, candidates):
    results = evaluate(oracle, pairs, candidates, modes=MODES, progress=False)
    assert results["tasks"]["flag"]["no_image"] == {"never": 0.0, "always": 0.0}
    assert "no_image" not in results["tasks"]["fact"]
    blind = [inputs for _, inputs in oracle.calls if inputs == [{"text": "capital?"}]]
    assert len(blind) == 2, "equal queries are embedded once per mode"


def test_no_image_is_left_out_where_nothing_would_remain(oracle, pairs, candidates):
    silent = pairs.map(lambda row: {"query": {**row["query"], "text": None}} if row["task"] == "flag" else row)
    assert "no_image" not in evaluate(oracle, silent, candidates, progress=False)["tasks"]["flag"]


def test_summary_is_the_mean_over_tasks(oracle, pairs, candidates):
    summary = evaluate(oracle, pairs, candidates, progress=False)["summary"]
    assert (summary["all"]["tasks"], summary["all"]["n"]) == (2, 7)
    assert summary["all"]["modes"]["never"]["hit@1"] == 0.5
    assert summary["multi-hop"]["modes"]["never"]["hit@1"] == 0.0
    assert summary["simple"]["modes"]["always"]["mean_reasoning_tokens"] == 5.0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"modes": ()}, "at least one is needed"), ({"pairs": 0}, "nothing to evaluate: no task was given")],
)
def test_refuses_nothing(oracle, pairs, candidates, options, message):
    pairs = pairs.select(range(options.pop("pairs", len(pairs))))
    with pytest.raises(ValueError, match=message):
        evaluate(oracle, pairs, candidates, progress=False, **options)


def test_refuses_tables_that_do_not_fit(oracle, pairs, candidates):
    with pytest.raises(ValueError, match="'Paris' is not among the 1 candidates"):
        evaluate(oracle, pairs, candidates.select([0]), progress=False)
    with pytest.raises(ValueError, match="no candidates for the set 'city'; known: unused"):
        evaluate(oracle, pairs, candidates.select([4]), progress=False)
    with pytest.raises(ValueError, match="'city' holds a candidate twice"):
        evaluate(oracle, pairs, candidates.select([0, 1, 2, 3, 3]), progress=False)
    mixed = pairs.map(lambda row, index: {"complexity": ["simple", "multi-hop"][index % 2]}, with_indices=True)
    with pytest.raises(ValueError, match="a task has one of each"):
        evaluate(oracle, mixed, candidates, progress=False)


def test_a_pair_that_stands_twice_is_refused(oracle, pairs, candidates):
    with pytest.raises(ValueError, match="fact: the query id 'fact/Lima' stands twice"):
        evaluate(oracle, pairs.select([0, 0, 1]), candidates, progress=False)


def test_pairs_without_ids_go_by_their_rows(pairs, candidates):
    fact, flag = atlas_tasks(pairs.remove_columns("pair_id"), candidates)
    assert (fact.query_ids, flag.query_ids) == (["0", "1", "2", "3"], ["4", "5", "6"])
    assert fact.candidates is flag.candidates, "tasks of one set share its candidates"


def test_intervals_draw_whole_entities(oracle, pairs, candidates):
    entities = ["south", "north", "south", "north", "south", "north", "south"]
    told = pairs.add_column("entity", entities)
    results = evaluate(oracle, told, candidates, modes=("never",), progress=False)
    fact, flag = atlas_tasks(told, candidates)
    assert (fact.clusters, flag.clusters) == (entities[:4], entities[4:])
    found = results["summary"]["all"]["modes"]["never"]
    hits = [1.0] * 4 + [0.0] * 3
    expected = clustered_bootstrap(hits, entities, ["fact"] * 4 + ["flag"] * 3)
    assert (found["score"], *found["interval"]) == pytest.approx(tuple(expected))


def test_refuses_a_model_that_loses_inputs(oracle, pairs, candidates):
    explain = oracle.explain
    oracle.explain = lambda inputs, **options: explain(inputs, **options)[1:]
    with pytest.raises(ValueError, match="gave 3 embeddings for 4 inputs"):
        evaluate(oracle, pairs, candidates, progress=False)


def test_results_survive_the_file(oracle, pairs, candidates, tmp_path):
    results = evaluate(oracle, pairs, candidates, progress=False, config={"model": "oracle", "seed": 0})
    assert results["config"]["model"] == "oracle"
    assert set(results["config"]["versions"]) >= {"mmemb-r1", "torch"}
    save_results(results, tmp_path / "new" / "results.json")
    assert load_results(tmp_path / "new" / "results.json") == results
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["results.json"]


def test_a_failed_write_leaves_the_old_file(oracle, pairs, candidates, tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="JSON"):
        save_results({"config": float("nan")}, path)
    assert path.read_text() == "old"


def test_load_refuses_other_files(tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"tasks": {}}))
    with pytest.raises(ValueError, match="does not hold the results"):
        load_results(tmp_path / "other.json")


def test_table_shows_every_task_and_mode(oracle, pairs, candidates):
    results = evaluate(oracle, pairs, candidates, modes=MODES, progress=False)
    results["tasks"]["fact"]["majority"] = 0.25
    console = Console(file=io.StringIO(), width=160)
    console.print(results_table(results))
    rows = [re.split(r"\s{2,}", line.strip()) for line in console.file.getvalue().splitlines()]
    lines = {cells[0]: cells for cells in rows}
    assert {"fact", "flag", "mean of simple", "mean of multi-hop", "mean of all"} <= set(lines)
    assert lines["fact"][1:5] == ["4", "0.250", "-", "1.000"]
    assert lines["flag"][3] == "0.000"
