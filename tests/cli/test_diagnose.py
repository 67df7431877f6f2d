"""`mmemb-r1 diagnose`: sources, verdicts and exit status."""

from __future__ import annotations

import json
import shutil

import pytest
from datasets import Dataset, Features, Value

from mmemb_r1.atlas import build_atlas, load_atlas
from mmemb_r1.cli import main
from mmemb_r1.cli.diagnose import STATUS
from mmemb_r1.evaluation.diagnose.verdict import judge
from mmemb_r1.evaluation.statistics import Interval

TEXT = {"text": Value("string")}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Questions of two tasks, and their answers."""
    rows = [
        {
            "pair_id": f"{task}/{number}",
            "task": task,
            "complexity": group,
            "query": {"text": f"{task} number {number}?"},
            "target": {"text": f"{number}"},
        }
        for task, group in (("fact", "simple"), ("flag", "multi-hop"))
        for number in range(12)
    ]
    strings = dict.fromkeys(("pair_id", "task", "complexity"), Value("string"))
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    Dataset.from_list(rows, features=Features({**strings, "query": TEXT, "target": TEXT})).to_parquet(path)
    return path


def diagnose(checkpoint, pairs, *options):
    return main(["diagnose", "--model", str(checkpoint), "--pairs", str(pairs), "--device", "cpu", *options])


def test_figures_and_verdict(tiny_checkpoint, pairs, tmp_path, capsys):
    status = diagnose(tiny_checkpoint, pairs, "--output", str(tmp_path / "out"), "--batch-size", "8")
    shown = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "shortcut.json").read_text())
    assert status == STATUS[results["summary"]["all"]["verdict"]]
    assert set(results["tasks"]) == {"fact", "flag"} and set(results["summary"]) == {"simple", "multi-hop", "all"}
    assert results["config"]["model"] == tiny_checkpoint.name and results["config"]["dataset"] == "pairs.parquet"
    assert "…" not in shown, "a column is cut"
    assert "mean of multi-hop" in shown and f"{tiny_checkpoint.name}: " in shown
    assert (tmp_path / "out" / "tasks" / "fact" / "shortcut.parquet").is_file()


def test_some_tasks_and_queries(tiny_checkpoint, pairs, tmp_path):
    diagnose(tiny_checkpoint, pairs, "--tasks", "multi-hop", "--max-queries", "5", "--output", str(tmp_path / "out"))
    results = json.loads((tmp_path / "out" / "shortcut.json").read_text())
    assert {name: entry["n"] for name, entry in results["tasks"].items()} == {"flag": 5}


def test_a_split_of_atlas(tiny_checkpoint, tmp_path):
    atlas, out = tmp_path / "atlas", tmp_path / "out"
    build_atlas(atlas, num_countries=12, num_objects=10, generated_rows=1, num_drawings=12, size=16, second_font=None)
    options = ["--split", "validation", "--tasks", "flag-capital", "--output", str(out), "--device", "cpu"]
    main(["diagnose", "--model", str(tiny_checkpoint), "--atlas", str(atlas), *options])
    results = json.loads((out / "shortcut.json").read_text())
    pairs = load_atlas(atlas).pairs["validation"]
    assert results["tasks"]["flag-capital"]["n"] == sum(task == "flag-capital" for task in pairs["task"]) > 0
    assert (results["config"]["dataset"], results["config"]["split"]) == ("Atlas", "validation")
    task = json.loads((out / "tasks" / "flag-capital" / "task.json").read_text())
    assert task["data"]["content"] == load_atlas(atlas).manifest["content_hash"]


@pytest.mark.parametrize(
    ("cost", "cosine", "status", "statement"),
    [
        (Interval(0.3, 0.25, 0.35), 0.5, 0, "reads its rationales"),
        (Interval(0.0, -0.01, 0.01), 0.97, 1, "ignores its rationales"),
        (Interval(0.0, -0.01, 0.01), 0.5, 3, "undecided whether it reads its rationales"),
    ],
)
def test_exit_status(tiny_checkpoint, pairs, monkeypatch, capsys, cost, cosine, status, statement):
    monkeypatch.setattr(
        "mmemb_r1.evaluation.diagnose.verdict.judge", lambda *_: judge(cost, cosine, 0.2, clusters=100)
    )
    assert diagnose(tiny_checkpoint, pairs, "--max-queries", "2") == status
    assert f"{tiny_checkpoint.name}: {statement}: swapping rationales costs" in capsys.readouterr().out


def test_errors_are_one_line(tiny_checkpoint, pairs, capsys, tmp_path):
    assert diagnose(tiny_checkpoint, tmp_path / "none.parquet") == 2
    assert "none.parquet: there is no such file" in capsys.readouterr().err
    assert diagnose(tiny_checkpoint, pairs, "--max-queries", "0") == 2
    assert "max_queries is 0" in capsys.readouterr().err
    assert diagnose(tiny_checkpoint, pairs, "--split", "test") == 2
    assert "--split is for --atlas; leave it out" in capsys.readouterr().err
    assert main(["diagnose", "--model", str(tiny_checkpoint), "--atlas", str(tmp_path)]) == 2
    assert "holds no Atlas" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["diagnose", "--model", str(tiny_checkpoint)])
    assert end.value.code == 2
    assert "one of the arguments --atlas --mmeb --pairs --reader is required" in capsys.readouterr().err


def test_a_checkpoint_that_changed_does_not_go_on_in_the_folder(tiny_checkpoint, pairs, tmp_path, capsys):
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    options = ("--max-queries", "2", "--output", str(tmp_path / "out"))
    diagnose(tmp_path / "model", pairs, *options)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "max_reasoning_tokens": 5}))
    assert diagnose(tmp_path / "model", pairs, *options) == 2
    assert "checkpoint was" in capsys.readouterr().err
