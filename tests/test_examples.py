"""The examples that documents point to are what the commands take."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from experiments.pipeline.grpo import GRPO_FIELDS, GRPO_STEPS
from experiments.pipeline.recipe import Recipe
from experiments.pipeline.stage import ON_CPU
from mmemb_r1.atlas import build_atlas
from mmemb_r1.cli import _parser
from mmemb_r1.cli._training import flags_of
from mmemb_r1.training.adaptive.run import AdaptiveRun
from mmemb_r1.training.joint.run import JointRun
from mmemb_r1.training.rationales.pool import load_pool
from mmemb_r1.training.run import as_number, read_recipe
from mmemb_r1.training.selection.evaluator_trainer import EvaluatorConfig


def test_pool(root, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    workers = load_pool(root / "examples" / "pool.yaml")
    assert [(worker.name, worker.num_samples) for worker in workers] == [
        ("instruct", 4),
        ("large", 4),
        ("thinking", 4),
        ("strong", 1),
    ]


def test_atlas_pool(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build_atlas(
        "runs/quickstart/atlas",
        num_countries=12,
        num_objects=10,
        generated_rows=1,
        num_drawings=12,
        size=16,
        second_font=None,
    )
    usual, hard = (load_pool(root / "experiments" / "quickstart" / name) for name in ("pool.yaml", "pool-hard.yaml"))
    assert [worker.behaviour for worker in usual] == ["correct", "confused", "verbose", "format"]
    assert [worker.definition for worker in hard[:4]] == [worker.definition for worker in usual]
    assert [worker.behaviour for worker in hard[4:]] == ["generic", "leaky", "restating", "needless"]


@pytest.mark.parametrize("name", ["atlas-evaluator-reading", "atlas-evaluator"])
def test_evaluator_recipes(root, tmp_path, name):
    fields = yaml.safe_load((root / "examples" / f"{name}.yaml").read_text(encoding="utf-8"))
    config = EvaluatorConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **fields)
    assert config.learning_rate <= 2e-4 and config.prompt == "evaluator-short"


JOINT = ("joint-atlas", "joint-qwen3-vl-2b-lora", "joint-qwen3-vl-4b-lora", "joint-qwen3-vl-4b-8gpu")


def joint_recipe(root, name):
    """The run and, as on a machine without a GPU, the config of a recipe."""
    recipe = read_recipe(root / "examples" / f"{name}.yaml", JointRun)
    recipe["settings"] |= {"use_cpu": True, "bf16": False, "activation_checkpointing": False}
    run = JointRun(model="none", pairs=Path("none"), output=Path("unused"), **recipe)
    return run, run.config()


def commands(root, name):
    """The commands in the comments at the head of an example; those that end in dots are not complete."""
    lines = (root / "examples" / name).read_text(encoding="utf-8").splitlines()
    head = "\n".join(line.removeprefix("#").strip() for line in lines if line.startswith("#")).replace("\\\n", " ")
    found = [
        shlex.split(line) for line in head.splitlines() if line.startswith(("mmemb-r1 ", "accelerate ", "python "))
    ]
    return [command for command in found if command[-1] != "..."]


@pytest.mark.parametrize("name", JOINT)
def test_joint_recipes(root, name):
    from mmemb_r1 import MMEmbR1Model
    from mmemb_r1.tiny import build_tiny_vlm
    from mmemb_r1.training.adapters import lora_config

    run, config = joint_recipe(root, name)
    assert (config.score_mask_margin is None) == (name == "joint-atlas")
    if run.lora is not None:
        model, _ = MMEmbR1Model.from_vlm(*build_tiny_vlm("qwen3_vl"))
        assert lora_config(model, **run.lora).r == 16


def test_the_atlas_recipe_is_the_packages(root):
    _, config = joint_recipe(root, "joint-atlas")
    recipe = Recipe()
    wanted = {**recipe.training, "max_steps": recipe.steps, "warmup_steps": recipe.steps // 15}
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert config.lr_scheduler_type == "cosine"


def test_accelerate_config(root):
    import transformers.models.qwen3_vl.modeling_qwen3_vl as qwen
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(root / "examples" / "accelerate-fsdp-8gpu.yaml"))
    assert config.distributed_type.value == "FSDP" and config.fsdp_config["fsdp_version"] == 2
    known = {action.dest for action in launch_command_parser()._actions}
    assert set(config.fsdp_config) <= known
    assert hasattr(qwen, config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"])
    _, recipe = joint_recipe(root, "joint-qwen3-vl-4b-8gpu")
    assert config.num_processes == 8 and recipe.freeze_vision_tower
    copies = load_config_from_file(str(root / "examples" / "accelerate-ddp-8gpu.yaml"))
    assert copies.distributed_type.value == "MULTI_GPU" and copies.num_processes == 8


ADAPTIVE = ("adaptive-qwen3-vl-4b-lora", "adaptive-qwen3-vl-4b-8gpu")


@pytest.mark.parametrize("name", [*JOINT, *ADAPTIVE])
def test_commands_of_the_recipes(root, name):
    from accelerate.commands.launch import launch_command_parser

    phase = name.partition("-")[0]
    phases = []
    for program, *arguments in commands(root, f"{name}.yaml"):
        files = []
        if program == "python":
            assert arguments[0] == "-m"
            assert (root / f"{arguments[1].replace('.', '/')}.py").is_file()
            continue
        if program == "accelerate":
            launched = launch_command_parser().parse_args(arguments[1:])
            assert launched.module and launched.training_script == "mmemb_r1.cli"
            files.append(launched.config_file)
            arguments = launched.training_script_args
        parsed = _parser(arguments).parse_args(arguments)
        phases.append(getattr(parsed, "phase", parsed.command))
        if phases[-1] == phase:
            assert parsed.config.name == f"{name}.yaml"
            files.append(str(parsed.config))
        assert all((root / file).is_file() for file in files)
    assert phases[0] == {"joint-atlas": "atlas", **dict.fromkeys(ADAPTIVE, "gate")}.get(name, "init")
    assert set(phases[1:]) == {phase}


@pytest.mark.parametrize("name", [name for name in JOINT if name.endswith("-lora")])
def test_several_gpus_have_the_batch_of_one(root, name):
    run, _ = joint_recipe(root, name)
    *_, (program, *arguments) = commands(root, f"{name}.yaml")
    ours = arguments[arguments.index("mmemb_r1.cli") + 1 :]
    fields = flags_of(_parser(ours).parse_args(ours))
    assert (
        program == "accelerate"
        and 8 * fields["per_device_train_batch_size"] == run.settings["per_device_train_batch_size"]
    )


@pytest.mark.slow
def test_an_untrained_model_for_atlas(root, tmp_path):
    from mmemb_r1 import MMEmbR1

    atlas, output = tmp_path / "atlas", tmp_path / "untrained"
    build_atlas(
        atlas,
        num_countries=12,
        num_objects=10,
        generated_rows=1,
        num_drawings=12,
        size=16,
        second_font=None,
    )
    command = [sys.executable, "-m", "experiments.quickstart.untrained", "--atlas", atlas, "--output", output]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    assert MMEmbR1(str(output), device="cpu").encode("Paris", reasoning="never").shape == (256,)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_adaptive_recipes_of_real_models(root, name):
    recipe = read_recipe(root / "examples" / f"{name}.yaml", AdaptiveRun)
    recipe["settings"] |= {"use_cpu": True, "bf16": False, "activation_checkpointing": False}
    run = AdaptiveRun(model="none", pairs=Path("none"), output=Path("unused"), **recipe)
    assert run.lora == ({"r": 16, "alpha": 32} if name.endswith("lora") else None)
    assert run.config().num_generations == 4


def test_the_adaptive_recipe(root):
    recipe = read_recipe(root / "examples" / "adaptive-atlas.yaml", AdaptiveRun)
    assert list(recipe) == ["settings"]
    fields = {name: as_number(name, value, 0.0) for name, value in recipe["settings"].items()}
    recipe["settings"] |= {"use_cpu": True, "bf16": False, "activation_checkpointing": False}
    config = AdaptiveRun(model="none", pairs=Path("none"), output=Path("unused"), **recipe).config()
    assert config.num_direct_rollouts == 1
    limit = {"save_total_limit": ON_CPU["save_total_limit"]}
    assert fields == {**GRPO_FIELDS, "max_steps": GRPO_STEPS, **limit}  # those of the benchmarks and the quickstart
    ((program, *arguments),) = commands(root, "adaptive-atlas.yaml")
    parsed = _parser(arguments).parse_args(arguments)
    assert program == "mmemb-r1" and parsed.phase == "adaptive" and (root / parsed.config).is_file()
