"""The recipes for several GPUs, through their very files, on two CPU processes and a tiny model."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SMALL = [
    "--cpu",
    "--logging_steps",
    "1",
    "--save_steps",
    "1",
    "--lr_scheduler_type",
    "constant",
    "--warmup_steps",
    "0",
]
JOINT = [
    *("--per_device_train_batch_size", "4", "--sub_batch_size", "4", "--mini_batch_size", "2"),
    *("--dataloader_num_workers", "0", "--learning_rate", "1e-3"),
]
ADAPTIVE = ["--per_device_train_batch_size", "8", "--max_reasoning_tokens", "4"]


@pytest.fixture(scope="module")
def given(tiny, rows, tmp_path_factory):
    """Option -> what takes the place of the recipes' files: a checkpoint and tables, as a user has them."""
    from mmemb_r1 import MMEmbR1

    folder = tmp_path_factory.mktemp("given")
    MMEmbR1.from_model(*tiny).save_pretrained(str(folder / "model"))
    rows.to_parquet(folder / "pairs.parquet")
    kept = [{"pair_id": row["pair_id"], "side": "query"} for row in rows.select_columns(["pair_id"])][:12]
    texts = [{**row, "text": f"It is {place}.", "posterior": 1.0} for place, row in enumerate(kept)]
    Dataset.from_list(texts).to_parquet(folder / "selected.parquet")
    tables = dict.fromkeys(("--pairs", "--joint-pairs"), folder / "pairs.parquet")
    return {"--model": folder / "model", "--rationales": folder / "selected.parquet", **tables}


def command_of(root, name, given, *options):
    """The command at the head of a recipe that is for several GPUs: accelerate's configuration, and ours after it."""
    head = [line.removeprefix("#").strip() for line in (root / "examples" / name).read_text("utf-8").splitlines()]
    (line,) = [line for line in "\n".join(head).replace("\\\n", "").splitlines() if line.startswith("accelerate ")]
    _, _, _, config, _, _, *command = shlex.split(line)
    for option, value in given.items():
        if option in command:
            command[command.index(option) + 1] = str(value)
    return config, [*command, *SMALL, *map(str, options)]


def dry_run(root, folder, *runs):
    """Run commands with one configuration of accelerate's, one after another, in one launch of two processes."""
    (config,) = {config for config, _ in runs}
    (folder / "commands.json").write_text(json.dumps([command for _, command in runs]))
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", "2"]
    done = subprocess.run(
        [*accelerate, "--main_process_port", "0", "tests/sharded_on_cpu.py", str(folder / "commands.json")],
        # the folders tests/vllm and tests/ray, beside the script, are not the libraries of these names
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-6000:]


def steps_of(folder: Path) -> int:
    return json.loads((folder / "model" / "training.json").read_text("utf-8"))["steps"]


def moved(given, folder):
    """Names of the weights that training changed; the checkpoint has to be one."""
    from mmemb_r1 import MMEmbR1

    vectors = MMEmbR1(str(folder / "model"), device="cpu").encode(["red"], reasoning="never")
    assert torch.as_tensor(vectors).isfinite().all()
    before, after = (load_file(path / "model.safetensors") for path in (given["--model"], folder / "model"))
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def gone_on_with(root, folder, given, recipe, options, last):
    """
    Run a sharded recipe to its `last` step, and stopped after a step and gone on with: to the very same weights.
    Returns the names of those that changed.
    """
    stopped, whole = folder / "stopped", folder / "whole"
    runs = [
        command_of(root, recipe, given, *options, "--max_steps", steps, "--output", output)
        for steps, output in ((1, stopped), (last, stopped), (last, whole))
    ]
    dry_run(root, folder, *runs)
    names = moved(given, whole)
    assert any("layers.1.mlp" in name for name in names) and any("gate" in name for name in names)
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (stopped, whole))
    assert steps_of(stopped) == last and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (whole / "checkpoints" / f"checkpoint-{last}" / "pytorch_model_fsdp_0").is_dir()  # it was sharded
    return names


def test_the_joint_phase_with_every_weight_sharded(root, tmp_path, given):
    names = gone_on_with(root, tmp_path, given, "joint-qwen3-vl-4b-8gpu.yaml", JOINT, 3)
    assert not any(".visual." in name for name in names)  # freeze_vision_tower


def test_the_adaptive_phase_with_every_weight_sharded(root, tmp_path, given):
    options = [*ADAPTIVE, "--max_reasoning_tokens", "1", "--temperature", "1e-4"]  # what is drawn has to be the same
    gone_on_with(root, tmp_path, given, "adaptive-qwen3-vl-4b-8gpu.yaml", options, 2)


def test_adapters_on_copies(root, tmp_path, given):
    recipes = {"joint-qwen3-vl-2b-lora": JOINT, "joint-qwen3-vl-4b-lora": JOINT, "adaptive-qwen3-vl-4b-lora": ADAPTIVE}
    runs = [
        command_of(root, f"{name}.yaml", given, *options, "--max_steps", 2, "--output", tmp_path / name)
        for name, options in recipes.items()
    ]
    dry_run(root, tmp_path, *runs)
    for name in recipes:
        names = moved(given, tmp_path / name)
        assert steps_of(tmp_path / name) == 2 and (tmp_path / name / "adapter" / "adapter_model.safetensors").is_file()
        assert any("layers.1.mlp" in name for name in names) and not any(".visual." in name for name in names)
