"""`mmemb-r1 compare`: tables, JSON and exit status."""

from __future__ import annotations

import json

import pytest

from mmemb_r1.cli import main

ALL_WRONG, ALL_RIGHT = {"fact": {"never": [0] * 20}}, {"fact": {"never": [1] * 20}}


def test_tables_of_each_mode(make_run, capsys):
    a = make_run(
        "a", {"fact": {"never": [0, 0, 1, 1], "auto": [0, 0, 0, 1]}, "flag": {"never": [0, 0], "auto": [0, 0]}}
    )
    b = make_run(
        "b", {"fact": {"never": [1, 1, 1, 1], "auto": [0, 0, 0, 1]}, "flag": {"never": [0, 0], "auto": [1, 1]}}
    )
    assert main(["compare", str(a), str(b), "--num-samples", "200"]) == 0
    shown = capsys.readouterr().out
    assert f"A: {a} (model a)" in shown and f"B: {b} (model b)" in shown
    assert "B - A, never" in shown and "B - A, auto" in shown
    (fact,) = [line.split() for line in shown.split("B - A, auto")[0].splitlines() if line.split()[:1] == ["fact"]]
    assert fact[1:5] == ["4", "0.500", "1.000", "50.0"]
    assert "mean of multi-hop" in shown and "mean of all" in shown
    assert "of 2 tasks have p < 0.05, of which chance alone would give 0.1" in shown


def test_figures_as_json(make_run, tmp_path):
    a, b = make_run("a", ALL_WRONG), make_run("b", ALL_RIGHT)
    path = tmp_path / "new" / "figures.json"
    assert main(["compare", str(a), str(b), "--seed", "3", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert (found["format"], found["num_samples"], found["seed"]) == (1, 5000, 3)
    assert found["comparisons"][0]["summary"]["all"]["difference"] == {"mean": 1, "low": 1, "high": 1}


@pytest.mark.parametrize(
    ("worse", "options", "status"), [(1, ["--fail-if-worse"], 1), (1, [], 0), (0, ["--fail-if-worse"], 0)]
)
def test_exit_status(make_run, worse, options, status):
    good, bad = make_run("good", ALL_RIGHT), make_run("bad", ALL_WRONG)
    folders = [good, bad] if worse else [bad, good]
    assert main(["compare", *map(str, folders), "--num-samples", "50", *options]) == status


def test_no_worse_than_chance_is_not_worse(make_run):
    a = make_run("a", {"fact": {"never": [1, 0, 1, 0, 1, 0]}})
    b = make_run("b", {"fact": {"never": [0, 0, 1, 0, 1, 0]}})
    assert main(["compare", str(a), str(b), "--fail-if-worse"]) == 0


def test_modes_of_one_run(make_run, capsys):
    a = make_run("a", {"fact": {"never": [0, 0, 1, 1], "always": [1, 1, 1, 1]}})
    assert main(["compare", str(a), str(a), "--mode-a", "never", "--mode-b", "always"]) == 0
    assert "always of B - never of A" in capsys.readouterr().out


def test_errors_are_one_line(make_run, capsys, tmp_path):
    a = make_run("a", ALL_WRONG)
    assert main(["compare", str(a), str(tmp_path / "none")]) == 2
    assert "none holds no results.json" in capsys.readouterr().err
    assert main(["compare", str(a), str(a), "--tasks", "flag"]) == 2
    assert "a: there is no task or group 'flag'; allowed: fact, simple" in capsys.readouterr().err
    assert main(["compare", str(a), str(a), "--num-samples", "0"]) == 2
    assert "num_samples=0" in capsys.readouterr().err
