from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from experiments.pipeline.recipe import Recipe
from experiments.quickstart.recipe import TASK_WEIGHTS, QuickstartRecipe, read_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = QuickstartRecipe(
    warm_up=Recipe(
        atlas={"num_countries": 12, "num_objects": 10, "generated_rows": 4, "second_font": None},
        vocab_size=400,
        backbone={"image_size": 64},
        model={"max_reasoning_tokens": 4},
        steps=2,
        training={
            "per_device_train_batch_size": 4,
            "sub_batch_size": 2,
            "save_steps": 1,
            "logging_steps": 1,
            "disable_tqdm": True,
        },
    ),
    joint={"max_steps": 3, "task_weights": TASK_WEIGHTS},
    grpo={
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "save_steps": 1,
        "disable_tqdm": True,
    },
    rows_per_task=2,
)
FOLDERS = {"atlas", "warm-up", "rationales", "scores", "selection", "trained", "gate", "model", "evaluation"}


def start(output, recipe=TINY, console=None):
    from experiments.quickstart.pipeline import run_quickstart

    return run_quickstart(output, recipe, console or Console(quiet=True), jobs=1)


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(one_thread, tmp_path_factory):
    """A whole quickstart at the smallest scale: its directory and its results."""
    output = tmp_path_factory.mktemp("quickstart") / "run"
    return output, start(output)


def facts_of(folder):
    return json.loads((folder / "training.json").read_text(encoding="utf-8"))


def test_everything_is_there(finished):
    output, results = finished
    assert FOLDERS | {"recipe.json", "results.json"} <= {path.name for path in output.iterdir()}
    assert set(results["config"]["modes"]) == {"never", "always", "auto"}
    assert results["config"]["training"]["steps"] == 3
    assert set(results["config"]["stages"]) == FOLDERS - {"atlas", "scores", "evaluation"}
    assert all(cost["seconds"] >= 0 and not cost["resumed"] for cost in results["config"]["stages"].values())
    assert results["summary"]["all"]["modes"]["always"]["invocation_ratio"] == 1.0
    assert {"results.json", "results.md", "report.html"} <= {path.name for path in (output / "evaluation").iterdir()}


def test_the_card_tells_of_all_phases(finished):
    output, _ = finished
    card = (output / "model" / "README.md").read_text(encoding="utf-8")
    for said in ("flag-capital", "2 steps on names of pictures", "1 steps of 8 rollouts", "selected ones, for"):
        assert said in card, said
    assert "seconds" not in facts_of(output / "model")


def test_the_joint_phase_drew_from_what_was_selected(finished):
    """Selected rationales of questions of several steps, and those of the others' own."""
    output, _ = finished
    kept = pq.read_table(output / "selection" / "selected.parquet")
    said = facts_of(output / "trained")["rationales"]
    workers = dict(part.rsplit(" ", 1) for part in said.split("; by worker: ")[1].split(", "))
    counts = {one["values"]: one["counts"] for one in kept["worker"].value_counts().to_pylist()}
    assert counts and {name: int(number) for name, number in workers.items() if name != "own"} == counts
    assert int(workers["own"]) > 0


def test_every_phase_begins_where_the_one_before_ended(finished):
    from mmemb_r1 import MMEmbR1

    output, _ = finished
    states = {
        name: MMEmbR1(str(output / name), device="cpu")[0].model.state_dict()
        for name in ("warm-up", "trained", "gate", "model")
    }

    def changed(before, after):
        return {name for name, values in states[after].items() if not states[before][name].equal(values)}

    assert changed("warm-up", "trained") and not any("gate.output" in name for name in changed("warm-up", "trained"))
    assert changed("trained", "gate") and all("gate" in name for name in changed("trained", "gate"))
    assert any("gate" not in name for name in changed("gate", "model"))


def test_what_is_there_is_not_done_again(finished):
    output, results = finished
    before = stamps(output)
    assert start(output) == results
    assert stamps(output) == before


@pytest.mark.parametrize("lost", ["results.json", "model", "selection"])
def test_a_run_that_lost_its_end_goes_on_from_there(finished, tmp_path, lost):
    """As after a kill: what comes before stays, and judgements are not asked for again."""
    order = ["atlas", "warm-up", "rationales", "scores", "selection", "trained", "gate", "model", "results.json"]
    copy = tmp_path / "run"
    shutil.copytree(finished[0], copy)
    shutil.rmtree(copy / "checkpoints")
    shutil.rmtree(copy / "evaluation")
    for name in order[order.index(lost) :]:
        path = copy / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
        path.with_name(f"{name}.json").unlink(missing_ok=True)  # of what was not begun
    kept = order[: order.index(lost)]
    before = {name: stamps(copy / name) for name in kept}
    shards = stamps(copy / "scores" / "shards")
    results = start(copy)
    if lost == "results.json":  # writes the card again
        before.pop("model")
    before.pop("scores")
    assert {name: stamps(copy / name) for name in before} == before
    assert stamps(copy / "scores" / "shards") == shards
    assert results["summary"]["all"]["modes"]["never"]["score"] == pytest.approx(
        finished[1]["summary"]["all"]["modes"]["never"]["score"]
    )


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (
            "trained",
            r"gate was begun with other settings or data: made of.trained was .* Remove .*gate and .*gate.json",
        ),
        ("gate", r"model was begun with other settings or data: made of.gate was .* Remove .*model and .*model.json"),
        ("model", r"results.json is of stages that were made anew since. Remove it and .*evaluation to"),
    ],
)
def test_a_stage_that_was_made_anew_leaves_nothing_stale_behind_it(finished, tmp_path, removed, message):
    copy = tmp_path / "run"
    shutil.copytree(finished[0], copy)
    shutil.rmtree(copy / removed)
    with pytest.raises(ValueError, match=message):
        start(copy)


def test_another_recipe_in_the_same_directory_is_refused(finished):
    with pytest.raises(ValueError, match="was begun with other settings"):
        start(finished[0], dataclasses.replace(TINY, joint={**TINY.joint, "max_steps": 4}))


def test_another_atlas_under_a_trained_model_is_refused(finished, tmp_path):
    for name in ("atlas", "recipe.json"):
        source, copy = finished[0] / name, tmp_path / "run" / name
        shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    (tmp_path / "run" / "data.json").write_text('{"atlas": "of yesterday"}')
    with pytest.raises(ValueError, match="was begun with other settings or data"):
        start(tmp_path / "run")


@pytest.mark.slow
def test_judging_in_two_processes_comes_to_the_same(finished, tmp_path):
    from experiments.quickstart.judging import judge_in_parts

    output, _ = finished
    judge_in_parts(output / "atlas", output / "rationales", output / "warm-up", tmp_path / "scores", jobs=2)
    tables = [pq.read_table(folder / "selected.parquet") for folder in (tmp_path / "scores", output / "scores")]
    assert tables[0].num_rows > 0 and tables[0].drop_columns(["posterior"]).equals(
        tables[1].drop_columns(["posterior"])
    )


def test_an_interrupted_training_goes_on(finished, tmp_path):
    from experiments.pipeline.joint import joint_settings, joint_trainer, train_from_nothing, untrained_model
    from mmemb_r1.atlas import load_atlas

    atlas, recipe = load_atlas(finished[0] / "atlas"), dataclasses.replace(TINY.warm_up, steps=3)
    half = dataclasses.replace(recipe, training={**recipe.training, "save_total_limit": None})
    settings = joint_settings(half, max_steps=2, warmup_steps=1)
    model, processor = untrained_model(atlas, half)
    joint_trainer(model, processor, atlas.pairs["train"], settings, tmp_path / "checkpoints").train()
    train_from_nothing(atlas, recipe, tmp_path / "trained", tmp_path / "checkpoints")
    facts = facts_of(tmp_path / "trained")
    assert facts["resumed from"] == "checkpoint-2" and facts["steps"] == 3


def test_a_selection_that_kept_nothing_is_told(finished, tmp_path):
    from experiments.quickstart.stages import what_was_kept

    told = what_was_kept(finished[0])
    assert "by the worker that helps" in told and told.endswith("% are that worker's")
    shutil.copytree(finished[0] / "selection", tmp_path / "selection")
    path = tmp_path / "selection" / "selected.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    assert what_was_kept(tmp_path) == "no rationale was kept"


def test_the_showcase_is_a_picture(finished, tmp_path):
    from experiments.quickstart.showcase import draw_showcase, save_example
    from mmemb_r1 import MMEmbR1
    from mmemb_r1.atlas import load_atlas

    output, _ = finished
    atlas = load_atlas(output / "atlas")
    draw_showcase(MMEmbR1(str(output / "model"), device="cpu"), atlas, tmp_path / "showcase.png", per_task=1)
    with Image.open(tmp_path / "showcase.png") as picture:
        assert picture.width > 1000
    with Image.open(save_example(atlas, tmp_path / "flag.png")) as flag:
        assert flag.size == (64, 64)


def test_the_command_shows_what_it_made(finished, monkeypatch, capsys):
    from experiments.quickstart.__main__ import main

    monkeypatch.setattr("experiments.quickstart.recipe.QuickstartRecipe", lambda: TINY)
    output, results = finished
    assert main(["--output", str(output)]) == 0
    said = capsys.readouterr().out
    for name in ("showcase.png", "flag.png", "evaluation/report.html", "results.json", "model/README.md"):
        assert str(output / name) in said and (output / name).is_file()
    assert f"{results['summary']['all']['modes']['never']['score']:.3f}" in said
    assert "rationales kept" in said and "thinking pays on" in said


@pytest.mark.slow
def test_the_lines_to_paste_work(finished, tmp_path):
    from experiments.quickstart.showcase import lines_to_paste, save_example
    from mmemb_r1.atlas import load_atlas

    output, _ = finished
    flag = save_example(load_atlas(output / "atlas"), tmp_path / "flag.png")
    run = subprocess.run(
        [sys.executable, "-c", lines_to_paste(output / "model", flag)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("\n")


def test_the_recipe_names_tasks_that_exist(finished):
    from mmemb_r1.atlas import load_atlas

    assert set(load_atlas(finished[0] / "atlas").pairs["train"]["task"]) <= set(TASK_WEIGHTS)


def test_a_recipe_is_read_as_it_was_noted(finished):
    assert dataclasses.asdict(read_recipe(finished[0])) == dataclasses.asdict(TINY)


def test_a_recipe_of_another_version_is_refused(tmp_path):
    (tmp_path / "recipe.json").write_text('{"seed": 0, "steps": 1900}')
    with pytest.raises(ValueError, match="has the fields seed, steps; expected: grpo, joint, rows_per_task, warm_up"):
        read_recipe(tmp_path)


def test_steps_and_seed_are_of_all_phases():
    recipe = QuickstartRecipe()
    assert recipe.with_steps(recipe.steps) == recipe
    few = recipe.with_steps(1)
    assert (few.warm_up.steps, few.joint["max_steps"], few.grpo["max_steps"]) == (1, 1, 1)
    assert recipe.with_seed(3).warm_up.seed == 3 and recipe.with_seed(3).joint == recipe.joint


def test_quickstart_refuses_no_steps(capsys, tmp_path):
    from experiments.quickstart.__main__ import main

    assert main(["--steps", "0", "--output", str(tmp_path / "run")]) == 2
    assert "at least 1 is needed" in capsys.readouterr().err
