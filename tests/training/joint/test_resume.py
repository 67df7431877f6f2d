"""A run that was killed, and goes on with the same command, comes to what it would have come to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file, save_file

from mmemb_r1.training.base_trainer import last_checkpoint

STEPS, SAVE_STEPS = 8, 2
TIMES = ("tokens_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second")
RECIPE = {
    "max_steps": STEPS,
    "save_steps": SAVE_STEPS,
    "logging_steps": 1,
    "per_device_train_batch_size": 12,
    "sub_batch_size": 6,
    "learning_rate": 1e-3,
    "gate_weight": 0.1,
    "num_hard_negatives": 1,
    "mini_batch_size": 5,
}
PATIENCE = 300.0  # seconds that a process may take to get somewhere


@pytest.fixture(scope="module")
def command(tiny_checkpoint, rows, tmp_path_factory) -> Callable[[Path], list[str]]:
    """Everything that is drawn at random has to go on where it stopped: rationales, hard negatives, order, dropout."""
    folder = tmp_path_factory.mktemp("inputs")
    model = folder / "model"
    model.mkdir()
    for path in tiny_checkpoint.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    config = json.loads((model / "config.json").read_text())
    config["vlm_config"]["text_config"]["attention_dropout"] = 0.1
    (model / "config.json").write_text(json.dumps(config))
    rows.to_parquet(str(folder / "pairs.parquet"))
    selected = [
        {"pair_id": row["pair_id"], "side": "query", "text": text, "posterior": posterior}
        for row in rows
        if row["query_rationale"]
        for text, posterior in ((row["query_rationale"][0], 0.6), ("It is a color.", 0.3), ("Say it.", 0.1))
    ]
    Dataset.from_list(selected).to_parquet(str(folder / "selected.parquet"))
    (folder / "joint.yaml").write_text(yaml.safe_dump(RECIPE))
    files = {"--pairs": "pairs.parquet", "--rationales": "selected.parquet", "--config": "joint.yaml"}
    options = ["--model", str(model), *(part for name, file in files.items() for part in (name, str(folder / file)))]
    return lambda output: [*"-m mmemb_r1.cli train joint --cpu".split(), *options, "--output", str(output)]


class Run:
    """A process that trains, with what it leaves on disk."""

    def __init__(self, command: list[str], output: Path) -> None:
        self.checkpoints = output / "checkpoints"
        self.log = output.with_suffix(".log").open("a+")
        self.process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=self.log,
            stderr=self.log,
        )

    def kill_when(self, there: Callable[[Path], bool], step: int) -> None:
        """SIGKILL as soon as something is true of the checkpoint of a step."""
        end = time.monotonic() + PATIENCE
        while not there(self.checkpoints / f"checkpoint-{step}"):
            assert self.process.poll() is None and time.monotonic() < end, self.said()
            time.sleep(0.001)
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL

    def finish(self) -> None:
        assert self.process.wait(PATIENCE) == 0, self.said()

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()[-4000:]


def complete(checkpoint: Path) -> bool:
    return (checkpoint / "training.json").exists()


def saving(checkpoint: Path) -> bool:
    return (checkpoint / "model.safetensors").exists()


def write_checkpoint(folder: Path, name: str, state: str | None = '{"global_step": 1}') -> None:
    (folder / name).mkdir(parents=True)
    save_file({"weight": torch.zeros(1)}, folder / name / "model.safetensors")
    if state is not None:
        (folder / name / "trainer_state.json").write_text(state)


class TestLastCheckpoint:
    def test_is_the_one_of_the_most_steps(self, tmp_path):
        for name in ("checkpoint-2", "checkpoint-10", "checkpoint-9", "checkpoint-99-copy", "other-50"):
            write_checkpoint(tmp_path, name)
        assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")

    @pytest.mark.parametrize("state", [None, "", '{"global_st'])
    def test_is_complete(self, tmp_path, state):
        write_checkpoint(tmp_path, "checkpoint-4", state)
        assert last_checkpoint(tmp_path) is None
        write_checkpoint(tmp_path, "checkpoint-2")
        assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")

    def test_is_none_in_a_folder_that_is_not_there(self, tmp_path):
        assert last_checkpoint(tmp_path / "nowhere") is None

    def test_is_what_the_trainer_goes_on_from(self, make_trainer, model, rows, tmp_path):
        write_checkpoint(tmp_path / "run", "checkpoint-4", None)
        trainer = make_trainer(model, rows, output_dir=str(tmp_path / "run"))
        with pytest.raises(ValueError, match="no complete checkpoint in .*run to go on from; leave"):
            trainer.train(resume_from_checkpoint=True)


def losses(output: Path) -> list[dict[str, float]]:
    """All that was logged at each step, but for what the clock says."""
    state = json.loads((output / "checkpoints" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [{name: value for name, value in log.items() if name not in TIMES} for log in state["log_history"]]


@pytest.mark.slow
def test_killed_twice_it_ends_like_an_undisturbed_run(command, tmp_path):
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    Run(command(calm), calm).finish()

    Run(command(wild), wild).kill_when(complete, 2)
    first = wild / "checkpoints" / "checkpoint-2" / "trainer_state.json"
    written = first.stat().st_mtime_ns
    Run(command(wild), wild).kill_when(saving, 6)
    assert not (wild / "model").exists()
    Run(command(wild), wild).finish()
    assert first.stat().st_mtime_ns == written  # nobody began anew

    ours, theirs = losses(wild), losses(calm)
    assert [log["step"] for log in theirs] == list(range(1, STEPS + 1))
    assert len({log["loss"] for log in theirs}) == STEPS and "rationale_query" in theirs[0]
    assert ours == theirs
    for part in ("model", f"checkpoints/checkpoint-{STEPS}"):
        weights, others = (load_file(output / part / "model.safetensors") for output in (wild, calm))
        assert weights.keys() == others.keys()
        assert all(torch.equal(weights[name], others[name]) for name in weights)
