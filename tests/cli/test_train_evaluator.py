"""`mmemb-r1 train-evaluator`: what is wrong is said before anything is trained."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from tests.training.selection.conftest import make_pairs

from mmemb_r1.cli import main
from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training.vlm import load_vlm

CONFIG = "prompt: evaluator-short\nper_device_train_batch_size: 2\nsave_strategy: 'no'\ndisable_tqdm: true\n"


@pytest.fixture
def pairs():
    return make_pairs()


@pytest.fixture
def train(pairs, tmp_path):
    """`train(*options, pairs=, eval_pairs=)` trains a tiny model, which was saved in bfloat16, for one step."""
    (tmp_path / "config.yaml").write_text(CONFIG, encoding="utf-8")
    vlm, processor = build_tiny_vlm("qwen3_vl", texts=["yes no Yes No"])
    for part in (vlm.to(torch.bfloat16), processor):
        part.save_pretrained(tmp_path / "vlm")

    def run(*options, pairs=pairs, eval_pairs=pairs):
        pairs.to_parquet(tmp_path / "pairs.parquet")
        eval_pairs.to_parquet(tmp_path / "eval.parquet")
        files = ["--pairs", tmp_path / "pairs.parquet", "--eval-pairs", tmp_path / "eval.parquet"]
        files += ["--model", tmp_path / "vlm", "--output", tmp_path / "out", "--config", tmp_path / "config.yaml"]
        return main(["train-evaluator", *map(str, files), "--cpu", "--max-steps", "1", *options])

    return run


def test_it_trains_in_float32_on_the_cpu_and_writes_what_it_measured(train, tmp_path, capsys):
    assert train() == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert command.startswith("mmemb-r1 select --pairs") and f"--evaluator {tmp_path / 'out' / 'model'} " in command
    measured = json.loads((tmp_path / "out" / "model" / "evaluator.json").read_text(encoding="utf-8"))
    assert 0 <= measured["accuracy_none"] <= 1 and measured["n_none"] == 2000, "the table has no rationales"
    assert load_vlm(tmp_path / "out" / "model", device="cpu")[0].dtype == torch.float32


@pytest.mark.parametrize("which", ["pairs", "eval_pairs"])
def test_a_table_without_a_column_is_refused_before_training(train, pairs, tmp_path, capsys, which):
    assert train(**{which: pairs.remove_columns("target")}) == 2
    assert f"{which.removesuffix('_pairs')}.parquet has no column 'target'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_pairs_that_cannot_be_made_wrong_are_refused_before_training(train, pairs, tmp_path, capsys):
    assert train(pairs=Dataset.from_list([pairs[0]])) == 2
    assert "No task has pairs with different queries and targets" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_rationales_of_a_table_are_part_of_what_a_folder_was_begun_with(train, pairs, tmp_path, capsys):
    row = {"side": "query", "worker": "w", "sample": 0, "seed": 0, "text": "Say it.", "num_tokens": 2}
    said = [{"pair_id": pair, **row, "finish_reason": "stop", "error": None} for pair in pairs["pair_id"]]
    table = tmp_path / "rationales.parquet"
    Dataset.from_list(said).to_parquet(table)
    assert train("--rationales", str(table)) == 0
    Dataset.from_list([{**row, "text": "Say something else."} for row in said]).to_parquet(table)
    assert train("--rationales", str(table)) == 2
    assert "rationales was" in capsys.readouterr().err
