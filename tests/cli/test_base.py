"""`--base` says, for every command that reads tables or lines, where relative paths in them start."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset
from PIL import Image

from mmemb_r1.cli import main

POOL = """\
samples: 1
workers:
  - name: own
    kind: checkpoint
    model: MODEL
    max_tokens: 4
"""
COMMANDS = {
    "encode": "encode --model MODEL --input tables/in.jsonl --output out.npy",
    "calibrate": "calibrate --model MODEL --pairs tables/pairs.parquet --target-ratio 0.5 --dry-run",
    "calibrate lines": "calibrate --model MODEL --input tables/in.jsonl --target-ratio 0.5 --dry-run",
    "evaluate": "evaluate --model MODEL --pairs tables/pairs.parquet --modes never",
    "pairs": "pairs check tables/pairs.parquet --model MODEL --workers 0",
    "rationales": "rationales --pairs tables/pairs.parquet --pool pool.yaml --sides query --output out",
    "joint": "train joint --model MODEL --pairs tables/pairs.parquet --output out --cpu --max_steps 1",
    "gate": "train gate --model MODEL --pairs tables/pairs.parquet --output out --device cpu",
    "adaptive": "train adaptive --model MODEL --pairs tables/pairs.parquet --output out --cpu --max_steps 1"
    " --per_device_train_batch_size 4 --max_reasoning_tokens 2",
}


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_checkpoint):
    for name in ("tables", "pictures"):
        (tmp_path / name).mkdir()
    rows = []
    for number, color in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (64, 64), color).save(tmp_path / "pictures" / f"{number}.png")
        query, target = {"text": "colour?", "image": f"{number}.png"}, {"text": color, "image": ""}
        rows.append({"pair_id": f"p{number}", "query": query, "target": target})
    Dataset.from_list(rows).to_parquet(tmp_path / "tables" / "pairs.parquet")
    lines = [json.dumps({"image": f"{number}.png"}) for number in range(4)]
    (tmp_path / "tables" / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "pool.yaml").write_text(POOL.replace("MODEL", str(tiny_checkpoint)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
@pytest.mark.parametrize("command", COMMANDS)
def test_pictures_are_found_from_the_base(command, folder, tiny_checkpoint, capsys):
    arguments = COMMANDS[command].replace("MODEL", str(tiny_checkpoint)).split()
    assert main([*arguments, "--base", "pictures"]) == 0, capsys.readouterr().err


def test_a_selection_and_a_diagnosis_find_them_too(folder, tiny_checkpoint, capsys):
    """The second has a status of its own for what four queries can't tell."""
    stopped = {"sample": 0, "seed": 0, "text": "Red.", "num_tokens": 2, "finish_reason": "stop", "error": None}
    rows = [{"pair_id": f"p{number}", "side": "query", "worker": "own", **stopped} for number in range(4)]
    Dataset.from_list(rows).to_parquet(folder / "rationales.parquet")
    commands = {
        "select --pairs tables/pairs.parquet --rationales rationales.parquet --evaluator MODEL --output out"
        " --negatives 1": {0},
        "diagnose --model MODEL --pairs tables/pairs.parquet --max-reasoning-tokens 2": {0, 1, 3},
    }
    for command, allowed in commands.items():
        arguments = command.replace("MODEL", str(tiny_checkpoint)).split()
        assert main([*arguments, "--base", "pictures"]) in allowed, capsys.readouterr().err


def test_without_it_they_are_looked_for_beside_the_table(folder, tiny_checkpoint, capsys):
    for command in ("encode", "evaluate", "gate"):
        assert main(COMMANDS[command].replace("MODEL", str(tiny_checkpoint)).split()) == 2
        assert f"{folder / 'tables'}/0.png" in capsys.readouterr().err.replace("'tables/", f"'{folder}/tables/")


def test_the_base_is_that_of_a_table(folder, tiny_checkpoint, capsys):
    assert main(["evaluate", "--model", str(tiny_checkpoint), "--atlas", "atlas", "--base", "pictures"]) == 2
    assert "--base is for --pairs; leave it out" in capsys.readouterr().err
