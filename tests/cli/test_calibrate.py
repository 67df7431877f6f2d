from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import main

TEXTS = [f"{word} {number}" for word in ("red", "the colour of the sea", "say") for number in range(10)]


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A copy whose gate tells inputs apart."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    model = MMEmbR1(str(folder), device="cpu")
    with torch.no_grad():
        model[0].model.gate.output.weight.normal_(generator=torch.Generator().manual_seed(0))
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture
def inputs(tmp_path):
    path = tmp_path / "inputs.jsonl"
    path.write_text("\n".join(map(json.dumps, TEXTS)))
    return path


def calibrate(checkpoint, inputs, *options):
    return main(["calibrate", "--model", str(checkpoint), "--input", str(inputs), "--device", "cpu", *options])


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_the_saved_checkpoint_thinks_as_often_as_wanted(checkpoint, inputs, ratio, capsys):
    assert calibrate(checkpoint, inputs, "--target-ratio", str(ratio)) == 0
    rows = MMEmbR1(str(checkpoint), device="cpu").explain(TEXTS, reasoning="auto")
    assert sum(bool(row["reasoned"]) for row in rows) == round(ratio * len(TEXTS))
    assert f"{ratio:.1%} of 30 inputs think" in capsys.readouterr().out


def test_a_budget_of_tokens(checkpoint, inputs):
    assert calibrate(checkpoint, inputs, "--target-tokens", "2") == 0
    rows = MMEmbR1(str(checkpoint), device="cpu").explain(TEXTS, reasoning="auto")
    mean = sum(int(row["num_reasoning_tokens"]) for row in rows) / len(rows)
    assert 2 - 8 / len(TEXTS) <= mean <= 2


def test_nothing_but_the_threshold_changes(checkpoint, inputs):
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()}
    config = json.loads(before["config.json"])
    assert calibrate(checkpoint, inputs, "--target-ratio", "0.3", "--dry-run") == 0
    assert (checkpoint / "config.json").read_bytes() == before["config.json"]
    assert calibrate(checkpoint, inputs, "--target-ratio", "0.3") == 0
    after = json.loads((checkpoint / "config.json").read_text())
    assert after.pop("gate_threshold") != config.pop("gate_threshold")
    assert after == config
    for name, content in before.items():
        assert name == "config.json" or (checkpoint / name).read_bytes() == content


def test_a_budget_of_tokens_needs_a_model_that_thinks_once(checkpoint, inputs, capsys):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "max_reasoning_rounds": 2}))
    assert calibrate(checkpoint, inputs, "--target-tokens", "2") == 2
    assert "may think several times" in capsys.readouterr().err


@pytest.fixture
def pairs(tmp_path):
    """The same inputs as queries of a pairs table, of three tasks."""
    path = tmp_path / "pairs.parquet"
    rows = [
        {"pair_id": str(row), "task": text.split()[0], "query": {"text": text}, "target": {"text": "a"}}
        for row, text in enumerate(TEXTS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_the_queries_of_a_pairs_table_are_as_good_as_lines(checkpoint, inputs, pairs, capsys):
    assert calibrate(checkpoint, inputs, "--target-ratio", "0.3", "--dry-run") == 0
    said = capsys.readouterr().out
    options = ["--model", str(checkpoint), "--pairs", str(pairs), "--device", "cpu", "--target-ratio", "0.3"]
    assert main(["calibrate", *options, "--dry-run"]) == 0
    assert capsys.readouterr().out == said
    assert main(["calibrate", *options, "--tasks", "red,say", "--per-task", "5"]) == 0
    said = capsys.readouterr().out
    assert "of 10 inputs think" in said and "next, measure it: mmemb-r1 evaluate" in said
    with pytest.raises(SystemExit):
        main(["calibrate", *options, "--input", str(inputs)])


def test_errors(checkpoint, inputs, tmp_path, capsys):
    assert calibrate(tmp_path / "nowhere", inputs, "--target-ratio", "0.3") == 2
    assert "there is no config.json in it" in capsys.readouterr().err
    assert calibrate(checkpoint, inputs, "--target-ratio", "30") == 2
    assert "--target-ratio 30.0; allowed: 0 to 1" in capsys.readouterr().err
    inputs.write_text('"red"\n{"image": "missing.png"}\n')
    assert calibrate(checkpoint, inputs, "--target-ratio", "0.3") == 2
    assert "line 2 can't be embedded" in capsys.readouterr().err
    assert calibrate(checkpoint, inputs, "--target-ratio", "0.3", "--per-task", "1") == 2
    assert "--tasks and --per-task are for --pairs" in capsys.readouterr().err
