"""`--pairs` and `--columns`, for every command that reads pairs: a folder of pictures with metadata in CSV."""

from __future__ import annotations

import json
import re

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from PIL import Image
from tests.cli.test_base import POOL

from mmemb_r1.cli import main
from mmemb_r1.tables.pairs import open_pairs
from mmemb_r1.training.joint.run import JointRun, train_joint

COLUMNS = "--columns query.image=image query.text=question target=answer"
TRAINED = "--model MODEL --pairs pictures --output out"
ONE_STEP = "--cpu --max_steps 1"
COMMANDS = {
    "calibrate": "calibrate --model MODEL --pairs pictures --target-ratio 0.5 --dry-run",
    "evaluate": "evaluate --model MODEL --pairs pictures --modes never",
    "pairs": "pairs check pictures --model MODEL --workers 0",
}
SLOW = {
    "gate": f"train gate {TRAINED} --device cpu",
    "adaptive": f"train adaptive {TRAINED} {ONE_STEP} --per_device_train_batch_size 4 --max_reasoning_tokens 2",
    "evaluator": f"train-evaluator {TRAINED} --cpu --max-steps 1",
    "diagnose": "diagnose --model MODEL --pairs pictures --max-reasoning-tokens 2",
}


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_checkpoint):
    (tmp_path / "pictures").mkdir()
    lines = ["file_name,question,answer"]
    for number, color in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (64, 64), color).save(tmp_path / "pictures" / f"{number}.png")
        lines.append(f"{number}.png,colour?,{color}")
    (tmp_path / "pictures" / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "pool.yaml").write_text(POOL.replace("MODEL", str(tiny_checkpoint)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(tiny_checkpoint):
    return lambda command: main(command.replace("MODEL", str(tiny_checkpoint)).split())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_of_pictures_is_a_table(command, folder, run, capsys):
    assert run(f"{COMMANDS[command]} {COLUMNS}") == 0, capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
@pytest.mark.parametrize("command", SLOW)
def test_every_other_command_takes_it_too(command, folder, run, capsys):
    """A diagnosis has a status of its own for what four queries can't tell."""
    allowed = {0, 1, 3} if command == "diagnose" else {0}
    assert run(f"{SLOW[command]} {COLUMNS}") in allowed, capsys.readouterr().err


def test_ids_that_were_made_join_what_one_command_writes_and_another_reads(folder, run, capsys):
    """Drawn, selected and trained on, each by a command of its own, the last with its columns in the recipe."""
    assert run(f"rationales --pairs pictures --pool pool.yaml --sides query --output drawn {COLUMNS}") == 0
    shown = capsys.readouterr().out
    assert f"mmemb-r1 select --pairs pictures {COLUMNS} --rationales drawn" in shown
    ids = set(
        open_pairs(folder / "pictures", {"query.image": "image", "query.text": "question", "target": "answer"})[
            "pair_id"
        ]
    )
    (shard,) = (folder / "drawn" / "shards").glob("*.parquet")
    assert set(pq.read_table(shard)["pair_id"].to_pylist()) == ids and len(ids) == 4
    stopped = {"sample": 0, "seed": 0, "text": "Red.", "num_tokens": 2, "finish_reason": "stop", "error": None}
    told = [{"pair_id": one, "side": "query", "worker": "own", **stopped} for one in sorted(ids)]
    Dataset.from_list(told).to_parquet(folder / "told.parquet")
    select = "select --pairs pictures --rationales told.parquet --evaluator MODEL --output selection --selection none"
    assert run(f"{select} --negatives 1 {COLUMNS}") == 0
    assert f"mmemb-r1 train joint --model DIR --pairs pictures {COLUMNS}" in capsys.readouterr().out
    recipe = {"columns": {"query.image": "image", "query.text": "question", "target": "answer"}}
    (folder / "joint.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    joint = f"train joint {TRAINED} {ONE_STEP} --rationales selection/selected.parquet --config joint.yaml"
    assert run(joint) == 0
    assert "4 selected ones, for 4 of the 4 pairs" in (folder / "out" / "model" / "training.json").read_text()
    capsys.readouterr()
    assert run(f"{joint} {COLUMNS} task=question") == 2
    assert "was begun with other settings or data: columns.task was not set, is now" in capsys.readouterr().err


@pytest.mark.slow
def test_pairs_in_memory_are_trained_on_from_python(tiny_checkpoint, tmp_path):
    rows = [{"anchor": f"{number}?", "positive": f"{number}"} for number in range(4)]
    settings = {"max_steps": 1, "use_cpu": True, "bf16": False, "activation_checkpointing": False}
    columns = {"query": "anchor", "target": "positive"}
    run = JointRun(
        model=str(tiny_checkpoint),
        pairs=Dataset.from_list(rows),
        output=tmp_path / "run",
        columns=columns,
        settings=settings,
        eval_pairs=Dataset.from_list([{"query": "a", "target": "b"}] * 2),
    )
    assert "eval_loss" in train_joint(run)
    told = json.loads((tmp_path / "run" / "model" / "training.json").read_text())
    assert told["pairs table"].startswith("a Dataset, SHA-256 ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--columns query=question query=answer", "'query' is there twice, of 'question' and 'answer'"),
        ("--columns query=question --columns query=answer", "'query' is there twice"),
        ("--columns querry=question", "'querry' is no column of ours; allowed: query, target"),
        ("--columns question", "'question' is none; allowed: OURS=THEIRS"),
        (
            "--columns query=frage target=answer",
            "pictures: columns: there is no column 'frage', which would be 'query'; there",
        ),
        ("", "has no column 'query'; .*say which: --columns query=question target=answer"),
    ],
)
def test_columns_that_do_not_go_are_refused(options, message, folder, run, capsys):
    try:
        status = run(f"evaluate --model MODEL --pairs pictures {options}")
    except SystemExit as stopped:
        status = stopped.code
    error = capsys.readouterr().err
    assert status == 2
    assert re.search(message, error), error


def test_nothing_but_pairs_is_asked_of_the_hub(folder, run, capsys):
    assert run("train joint --model MODEL --pairs pictures --output out --rationales selection/selected") == 2
    assert "--rationales selection/selected: there is no such file" in capsys.readouterr().err


def test_columns_are_those_of_a_table(folder, run, capsys):
    assert run("evaluate --model MODEL --atlas atlas --columns query=a") == 2
    assert "--columns is for --pairs; leave it out" in capsys.readouterr().err
