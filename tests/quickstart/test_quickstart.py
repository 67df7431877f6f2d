from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
from PIL import Image
from rich.console import Console

from mmemb_r1.pipeline.recipe import TASK_WEIGHTS, Recipe

TINY = Recipe(
    atlas={"num_countries": 12, "num_objects": 10, "generated_rows": 4, "second_font": None},
    vocab_size=400,
    backbone={"image_size": 64},
    model={"max_reasoning_tokens": 4},
    steps=3,
    training={
        "per_device_train_batch_size": 4,
        "sub_batch_size": 2,
        "save_steps": 1,
        "logging_steps": 1,
        "disable_tqdm": True,
    },
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole quickstart at the smallest scale: its directory and its results."""
    from mmemb_r1.quickstart.pipeline import run_quickstart

    output = tmp_path_factory.mktemp("quickstart") / "run"
    return output, run_quickstart(output, TINY, Console(quiet=True))


def test_everything_is_there(finished):
    output, results = finished
    assert {"recipe.json", "atlas", "trained", "model", "results.json"} <= {path.name for path in output.iterdir()}
    assert set(results["config"]["modes"]) == {"never", "always", "auto"}
    assert results["config"]["training"]["steps"] == 3
    assert results["summary"]["all"]["modes"]["always"]["invocation_ratio"] == 1.0
    card = (output / "model" / "README.md").read_text(encoding="utf-8")
    assert "flag-capital" in card


def test_the_gate_was_fitted(finished):
    from mmemb_r1 import MMEmbR1

    output, _ = finished
    before, after = (MMEmbR1(str(output / name), device="cpu")[0].model.gate.output for name in ("trained", "model"))
    assert (before.weight == 0).all() and (after.weight != 0).any()
    facts = json.loads((output / "model" / "training.json").read_text(encoding="utf-8"))
    assert facts["the gate thinks on"].endswith("% of policy")


def test_what_is_there_is_not_done_again(finished):
    from mmemb_r1.quickstart.pipeline import run_quickstart

    output, results = finished
    stamps = {
        path: path.stat().st_mtime_ns for path in output.rglob("*") if path.name != "recipe.json" and path.is_file()
    }
    assert run_quickstart(output, TINY, Console(quiet=True)) == results
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_another_recipe_in_the_same_directory_is_refused(finished):
    from mmemb_r1.quickstart.pipeline import run_quickstart

    with pytest.raises(ValueError, match="was begun with other settings"):
        run_quickstart(finished[0], dataclasses.replace(TINY, steps=4), Console(quiet=True))


def test_another_atlas_under_a_trained_model_is_refused(finished, tmp_path):
    import shutil

    from mmemb_r1.quickstart.pipeline import run_quickstart

    copy = tmp_path / "run"
    shutil.copytree(finished[0], copy)
    (copy / "data.json").write_text('{"atlas": "of yesterday"}')
    with pytest.raises(ValueError, match="was begun with other settings or data"):
        run_quickstart(copy, TINY, Console(quiet=True))


def test_an_interrupted_training_goes_on(finished, tmp_path):
    from mmemb_r1.atlas import load_atlas
    from mmemb_r1.pipeline.joint import joint_settings, joint_trainer, train_from_nothing, untrained_model

    atlas = load_atlas(finished[0] / "atlas")
    half = dataclasses.replace(TINY, training={**TINY.training, "save_total_limit": None})
    settings = joint_settings(half, max_steps=2, warmup_steps=1)
    model, processor = untrained_model(atlas, half)
    joint_trainer(model, processor, atlas.pairs["train"], settings, tmp_path / "checkpoints").train()
    train_from_nothing(atlas, TINY, tmp_path / "trained", tmp_path / "checkpoints")
    facts = json.loads((tmp_path / "trained" / "training.json").read_text(encoding="utf-8"))
    assert facts["resumed from"] == "checkpoint-2" and facts["steps"] == 3


def test_the_showcase_is_a_picture(finished, tmp_path):
    from mmemb_r1 import MMEmbR1
    from mmemb_r1.atlas import load_atlas
    from mmemb_r1.quickstart.showcase import draw_showcase, save_example

    output, _ = finished
    atlas = load_atlas(output / "atlas")
    draw_showcase(MMEmbR1(str(output / "model"), device="cpu"), atlas, tmp_path / "showcase.png", per_task=1)
    with Image.open(tmp_path / "showcase.png") as picture:
        assert picture.width > 1000
    with Image.open(save_example(atlas, tmp_path / "flag.png")) as flag:
        assert flag.size == (64, 64)


@pytest.mark.slow
def test_the_lines_to_paste_work(finished, tmp_path):
    from mmemb_r1.atlas import load_atlas
    from mmemb_r1.quickstart.showcase import lines_to_paste, save_example

    output, _ = finished
    flag = save_example(load_atlas(output / "atlas"), tmp_path / "flag.png")
    run = subprocess.run(
        [sys.executable, "-c", lines_to_paste(output / "model", flag)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("\n")


def test_the_recipe_names_tasks_that_exist(finished):
    from mmemb_r1.atlas import load_atlas

    tasks = set(load_atlas(finished[0] / "atlas").pairs["train"]["task"])
    assert tasks <= set(TASK_WEIGHTS)
