"""Two folders that an evaluation wrote, compared."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmemb_r1.evaluation.atlas_tasks import atlas_tasks
from mmemb_r1.evaluation.compare import compare_runs
from mmemb_r1.evaluation.runner import run_evaluation
from mmemb_r1.evaluation.settings import Settings
from mmemb_r1.evaluation.statistics import clustered_bootstrap


def test_every_task_group_and_all(make_run):
    a = make_run("a", {"fact": {"never": [0, 0, 1, 1]}, "name": {"never": [1, 0]}, "flag": {"never": [0, 0, 0, 0]}})
    b = make_run("b", {"fact": {"never": [1, 0, 1, 1]}, "name": {"never": [0, 0]}, "flag": {"never": [1, 1, 1, 0]}})
    (found,) = compare_runs(a, b, num_samples=300)["comparisons"]
    assert (found["mode_a"], found["mode_b"]) == ("never", "never")
    gains = {name: entry["difference"]["mean"] for name, entry in found["tasks"].items()}
    assert gains == {"fact": 0.25, "name": -0.5, "flag": 0.75}
    means = {name: entry["difference"]["mean"] for name, entry in found["summary"].items()}
    assert means == pytest.approx({"simple": -0.125, "multi-hop": 0.75, "all": 0.5 / 3})
    counts = {name: (entry["tasks"], entry["n"]) for name, entry in found["summary"].items()}
    assert counts == {"simple": (2, 6), "multi-hop": (1, 4), "all": (3, 10)}
    assert found["tasks"]["flag"]["metric"] == "hit@1"
    json.dumps(found, allow_nan=False)


def test_the_mean_over_all_draws_clusters_across_tasks(make_run):
    a = make_run("a", {"fact": {"never": [0, 0, 1, 1]}, "flag": {"never": [0, 0, 0, 0]}})
    b = make_run("b", {"fact": {"never": [1, 0, 1, 1]}, "flag": {"never": [1, 1, 1, 0]}})
    (found,) = compare_runs(a, b, num_samples=400, seed=2)["comparisons"]
    differences, clusters = [1, 0, 0, 0, 1, 1, 1, 0], ["c0", "c0", "c1", "c1"] * 2
    expected = clustered_bootstrap(differences, clusters, ["fact"] * 4 + ["flag"] * 4, num_samples=400, seed=2)
    assert found["summary"]["all"]["difference"] == pytest.approx(expected._asdict())
    assert found["summary"]["all"]["clusters"] == 2


def test_every_mode_that_both_have(make_run):
    a = make_run("a", {"fact": {mode: [0, 1] for mode in ("never", "always", "auto")}})
    b = make_run("b", {"fact": {"auto": [1, 1], "never": [0, 1]}})
    found = compare_runs(a, b, num_samples=50)["comparisons"]
    assert [(one["mode_a"], one["mode_b"]) for one in found] == [("never", "never"), ("auto", "auto")]


def test_modes_of_one_run(make_run):
    a = make_run("a", {"fact": {"never": [0, 0, 1, 0], "auto": [1, 1, 1, 0]}})
    (found,) = compare_runs(a, a, mode_a="never", mode_b="auto", num_samples=50)["comparisons"]
    assert (found["tasks"]["fact"]["a"], found["tasks"]["fact"]["b"]) == (0.25, 0.75)
    (same,) = compare_runs(a, a, mode_b="auto", num_samples=50)["comparisons"]
    assert (same["mode_a"], same["mode_b"], same["summary"]["all"]["p"]) == ("auto", "auto", 1)


def test_queries_are_matched_by_their_ids_not_by_their_places(make_run):
    a = make_run("a", {"fact": {"never": [0.0, 0.25, 0.5, 1.0]}})
    b = make_run("b", {"fact": {"never": [0.0, 0.25, 0.5, 1.0]}}, order=[2, 0, 3, 1])
    (found,) = compare_runs(a, b, num_samples=50)["comparisons"]
    assert found["tasks"]["fact"]["difference"] == {"mean": 0, "low": 0, "high": 0}


def test_p_values_of_tasks_are_corrected_for_their_number(make_run):
    rng = np.random.default_rng(0)
    scores = {f"task-{number}": {"never": rng.integers(0, 2, 60)} for number in range(5)}
    better = {name: {"never": np.maximum(modes["never"], rng.integers(0, 2, 60))} for name, modes in scores.items()}
    better["task-0"] = scores["task-0"]
    (found,) = compare_runs(make_run("a", scores), make_run("b", better), num_samples=999)["comparisons"]
    raw = {name: entry["p"] for name, entry in found["tasks"].items()}
    corrected = {name: entry["p_holm"] for name, entry in found["tasks"].items()}
    assert raw["task-0"] == corrected["task-0"] == 1
    smallest = min(raw, key=raw.__getitem__)
    assert corrected[smallest] == pytest.approx(5 * raw[smallest])
    assert "p_holm" not in found["summary"]["all"]


def test_some_tasks_of_runs_that_have_others(make_run):
    a = make_run("a", {"fact": {"never": [0, 1]}, "flag": {"never": [0, 1]}})
    b = make_run("b", {"fact": {"never": [1, 1]}})
    with pytest.raises(ValueError, match=r"a has 1 tasks that \S+b lacks: flag; name the tasks"):
        compare_runs(a, b)
    with pytest.raises(ValueError, match=r"a has 1 tasks that \S+b lacks: flag"):
        compare_runs(b, a)
    (found,) = compare_runs(a, b, tasks=["fact"], num_samples=50)["comparisons"]
    assert set(found["tasks"]) == {"fact"} and set(found["summary"]) == {"simple", "all"}
    with pytest.raises(ValueError, match="b: there is no task or group 'flag'; allowed: fact, simple"):
        compare_runs(a, b, tasks=["flag"])


def test_tasks_by_their_groups(make_run):
    three = {name: {"never": [0, 1]} for name in ("fact", "flag", "name")}
    a, b = make_run("a", three), make_run("b", {name: three[name] for name in ("flag", "fact")})

    def names(*wanted):
        return list(compare_runs(a, b, tasks=wanted, num_samples=50)["comparisons"][0]["tasks"])

    assert names("multi-hop") == names("flag") == ["flag"]
    assert names("multi-hop", "fact") == ["fact", "flag"]
    with pytest.raises(ValueError, match=r"a has 1 tasks that \S+b lacks: name"):
        names("simple")
    with pytest.raises(ValueError, match="no task was named; allowed: fact, flag, multi-hop, name, simple"):
        names()


def test_other_data_is_refused(make_run):
    scores = {"fact": {"never": [0, 1]}}
    a, b = make_run("a", scores), make_run("b", scores, data={"split": "test", "digest": "other"})
    with pytest.raises(
        ValueError, match=r"fact is not the same task .*digest is 'fact' and 'other'; split is None and"
    ):
        compare_runs(a, b)
    old = make_run("old", scores, data={})
    with pytest.raises(ValueError, match="old does not tell what data its task fact is of"):
        compare_runs(a, old)


def test_other_queries_and_clusters_are_refused(make_run):
    a = make_run("a", {"fact": {"never": [0, 1, 1]}})
    more = make_run("b", {"fact": {"never": [0, 1, 1, 1]}})
    with pytest.raises(ValueError, match="fact: 1 queries are in one of the runs only, say 'q3'"):
        compare_runs(a, more)
    moved = make_run("c", {"fact": {"never": [0, 1, 1]}}, clusters=["c0", "c1", "c1"])
    with pytest.raises(ValueError, match="the query 'q1' is of the cluster 'c0' in one run and of 'c1'"):
        compare_runs(a, moved)


def test_modes_that_are_missing_are_named(make_run):
    a, b = make_run("a", {"fact": {"never": [0, 1]}}), make_run("b", {"fact": {"always": [0, 1]}})
    with pytest.raises(ValueError, match=r"a has the modes never and \S+b always, none in common"):
        compare_runs(a, b)
    with pytest.raises(ValueError, match="b was not evaluated in the mode 'never'; it has always"):
        compare_runs(a, b, mode_a="never")


def test_a_folder_without_results_is_refused(make_run, tmp_path):
    a = make_run("a", {"fact": {"never": [0, 1]}})
    with pytest.raises(ValueError, match=r"none holds no results.json; name a folder"):
        compare_runs(a, tmp_path / "none")
    (a / "tasks" / "fact" / "never.parquet").unlink()
    with pytest.raises(ValueError, match=r"never.parquet can't be read"):
        compare_runs(a, a)


def test_folders_that_an_evaluation_wrote(oracle, pairs, candidates, tmp_path):
    """The oracle knows facts at once, and what a picture shows only after thinking."""
    settings = Settings(modes=("never", "always"))
    whole, part = tmp_path / "whole", tmp_path / "part"
    run_evaluation(oracle, atlas_tasks(pairs, candidates), settings, output=whole, checkpoint="oracle", progress=False)
    (found,) = compare_runs(whole, whole, mode_a="never", mode_b="always", num_samples=200)["comparisons"]
    gains = {name: entry["difference"]["mean"] for name, entry in found["tasks"].items()}
    assert gains == {"fact": 0, "flag": 1}
    assert found["summary"]["all"]["difference"]["mean"] == 0.5
    run_evaluation(
        oracle,
        atlas_tasks(pairs.select(range(6)), candidates),
        settings,
        output=part,
        checkpoint="oracle",
        progress=False,
    )
    with pytest.raises(ValueError, match="flag is not the same task in .*: digest is"):
        compare_runs(whole, part)
    assert compare_runs(whole, part, tasks=["fact"], num_samples=50)["comparisons"][0]["summary"]["all"]["p"] == 1
