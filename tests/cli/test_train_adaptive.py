from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures
from safetensors.torch import load_file

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import main

COLORS = ("red", "green", "blue", "white")
RECIPE = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_reasoning_tokens": 3,
    "save_steps": 1,
    "logging_steps": 1,
    "disable_tqdm": True,
}
PATIENCE = 300.0


def write_pairs(path, prefix="pair", text="color?"):
    part = {"text": Value("string"), "image": List(Image())}
    features = Features({"pair_id": Value("string"), "query": part, "target": part})
    rows = [
        {
            "pair_id": f"{prefix} {place}",
            "query": {"text": text, "image": [Pictures.new("RGB", (64, 64), color)] if place % 2 else []},
            "target": {"text": f"{color} {prefix}", "image": []},
        }
        for place, color in enumerate(COLORS)
    ]
    Dataset.from_list(rows, features=features).to_parquet(str(path))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adaptive")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    return {
        "--pairs": write_pairs(folder / "pairs.parquet"),
        "--joint-pairs": write_pairs(folder / "joint.parquet", "joint", "which color?"),
        "--config": recipe,
    }


def arguments(checkpoint, output, files, steps):
    named = [part for name, path in files.items() for part in (name, str(path))]
    start = ["train", "adaptive", "--cpu", "--model", str(checkpoint), "--output", str(output)]
    return [*start, "--max-steps", str(steps), *named]


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_a_checkpoint_is_trained_saved_and_gone_on_with(tiny_checkpoint, files, tmp_path, capsys, new_modes):
    run = tmp_path / "run"
    assert main(arguments(tiny_checkpoint, run, files, 1)) == 0
    assert main(arguments(tiny_checkpoint, run, files, 2)) == 0
    told = capsys.readouterr()
    assert f"the trained checkpoint is in {run / 'model'}" in told.out
    steps = [line for line in told.err.splitlines() if line.startswith("step: ")]
    assert [line.split(",")[0] for line in steps] == ["step: 1 of 1", "step: 2 of 2"]
    figures = [part.split()[0] for part in steps[1].split("; ")[1].split(", ")]
    assert len(figures) == 10 and {"loss", "reward", "gate/prob", "rationale/tokens"} < set(figures)
    state = json.loads((run / "checkpoints" / "checkpoint-2" / "trainer_state.json").read_text())
    assert [log["step"] for log in state["log_history"] if "loss" in log] == [1, 2]
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, run / "model"))
    assert not all(before[name].equal(after[name]) for name in before)
    assert MMEmbR1(str(run / "model"), device="cpu").encode(["red"]).shape == (1, 32)
    facts = json.loads((run / "model" / "training.json").read_text())
    assert facts["phase"] == "adaptive (GRPO)" and facts["steps"] == 2 and facts["pairs"] == len(COLORS)
    assert "adaptive (GRPO)" in (run / "model" / "README.md").read_text()
    new_modes(run)


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_queries_of_the_joint_phase_are_told(tiny_checkpoint, files, tmp_path):
    same = {**files, "--joint-pairs": files["--pairs"]}
    with pytest.warns(UserWarning, match="4 of 4 queries are among those of the joint phase"):
        main(arguments(tiny_checkpoint, tmp_path / "run", same, 1))


def test_errors(tiny_checkpoint, files, tmp_path, capsys):
    missing = {**files, "--joint-pairs": tmp_path / "none.parquet"}
    assert main(arguments(tiny_checkpoint, tmp_path / "run", missing, 1)) == 2
    assert "--joint-pairs" in capsys.readouterr().err
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump({**RECIPE, "num_generations": 1}))
    assert main(arguments(tiny_checkpoint, tmp_path / "run", {**files, "--config": bad}, 1)) == 2
    assert "a group needs at least one direct rollout and two that think" in capsys.readouterr().err
    bad.write_text(yaml.safe_dump({"sub_batch_size": 2}))
    assert main(arguments(tiny_checkpoint, tmp_path / "run", {**files, "--config": bad}, 1)) == 2
    assert "AdaptiveGRPOConfig has no field 'sub_batch_size'" in capsys.readouterr().err
    bad.write_text(yaml.safe_dump({"alignment_weight": 2}))
    assert main(arguments(tiny_checkpoint, tmp_path / "run", {**files, "--config": bad}, 1)) == 2
    error = capsys.readouterr().err
    assert "has no field 'alignment_weight'; it is called 'target_probability_weight' now" in error


def test_quantised_weights_below_adapters(tiny_checkpoint, files, tmp_path, capsys, monkeypatch):
    """As far as a CPU goes: the recipe's section reaches the loader, and is refused where it can't work."""
    recipe = tmp_path / "recipe.yaml"
    given = {**files, "--config": recipe}
    recipe.write_text(yaml.safe_dump({**RECIPE, "quantization": {"load_in_4bit": True}}))
    assert main(arguments(tiny_checkpoint, tmp_path / "run", given, 1)) == 2
    assert "quantised weights can't be trained; add lora" in capsys.readouterr().err
    recipe.write_text(yaml.safe_dump({**RECIPE, "lora": {}, "quantization": {"load_in_4bit": True}}))
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda *args: False)
    assert main(arguments(tiny_checkpoint, tmp_path / "run", given, 1)) == 2
    assert "needs bitsandbytes: pip install bitsandbytes" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_adapters_are_trained_and_merged(tiny_checkpoint, files, tmp_path):
    """With a reference model, which is the same one without what the adapters have learnt."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "lora": {"r": 2}, "beta": 0.1, "learning_rate": 0.01}))
    run = tmp_path / "run"
    assert main(arguments(tiny_checkpoint, run, {**files, "--config": recipe}, 2)) == 0
    assert {path.name for path in (run / "adapter").glob("adapter_*")} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, run / "model"))
    moved = {name for name in before if not before[name].equal(after[name])}
    assert any("q_proj" in name for name in moved) and not any("visual" in name for name in moved)
    assert len(list((run / "checkpoints" / "candidates").iterdir())) > 0


@pytest.mark.slow
def test_a_killed_run_goes_on(tiny_checkpoint, files, tmp_path):
    def command(output):
        return [sys.executable, "-m", "mmemb_r1.cli", *arguments(tiny_checkpoint, output, files, 6)]

    subprocess.run(command(tmp_path / "whole"), check=True, timeout=PATIENCE, capture_output=True)
    killed = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    start = time.monotonic()
    while not (tmp_path / "killed" / "checkpoints" / "checkpoint-2" / "trainer_state.json").exists():
        assert killed.poll() is None and time.monotonic() - start < PATIENCE
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "model").exists()
    subprocess.run(command(tmp_path / "killed"), check=True, timeout=PATIENCE, capture_output=True)
    whole, again = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert all(whole[name].equal(again[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_train(tiny_checkpoint, files, tmp_path):
    several = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launch = f"-m accelerate.commands.launch {several} --main_process_port 0 -m mmemb_r1.cli"
    command = [sys.executable, *launch.split(), *arguments(tiny_checkpoint, tmp_path, files, 2)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, timeout=PATIENCE, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads((tmp_path / "checkpoints" / "checkpoint-2" / "trainer_state.json").read_text())
    logs = [log for log in state["log_history"] if "loss" in log]
    assert len(logs) == 2
    # 16 rollouts a step in all: 4 of the table's 4 queries, so that an epoch is one step long
    assert logs[0]["epoch"] == 1.0
    assert (tmp_path / "model" / "model.safetensors").exists()
