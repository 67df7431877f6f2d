from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from experiments.pipeline.joint import joint_settings
from experiments.pipeline.recipe import Recipe
from experiments.pipeline.stage import ON_CPU
from experiments.pipeline.tasks import MULTI_HOP
from experiments.pipeline.warm_up import warm_up_recipe

SMALL = {
    "ATLAS": "--num-countries 12 --num-objects 10 --generated-rows 16 --num-drawings 12 --second-font none",
    "MODEL": "--smallest",
    "OMP_NUM_THREADS": "1",
}
FEW = {"per_device_train_batch_size": 4, "sub_batch_size": 2, "save_steps": 1, "logging_steps": 1, "warmup_steps": 1}
STEPS = {
    "warm-up": {**FEW, "max_steps": 2},
    "joint": {**FEW, "max_steps": 3},
    "adaptive": {"max_steps": 1, "per_device_train_batch_size": 8, "save_steps": 1, "logging_steps": 1},
}
PHASES = ("warm-up", "joint", "gate", "adaptive", "gate-again")
FOLDERS = {"atlas", "untrained", "rationales", "selection", "evaluation", *PHASES}
SIZES = ("small", "kinds", "full")


@pytest.fixture(scope="module")
def recipes(root, tmp_path_factory):
    """The quickstart's recipes with a few steps of each phase."""
    folder = tmp_path_factory.mktemp("recipes")
    own = root / "experiments" / "quickstart" / "full"
    shutil.copy(own / "world.sh", folder)
    for name, changes in STEPS.items():
        settings = {**yaml.safe_load((own / f"{name}.yaml").read_text(encoding="utf-8")), **changes}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(root, recipes):
    """`run(folder)`: the script at the smallest scale; what it printed, and the exit status."""
    paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path)
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = {**SMALL, "RECIPES": str(recipes), "PYTHONPATH": paths, "PATH": binaries}

    def start(folder, **changes):
        script = root / "experiments" / "quickstart" / "quickstart.sh"
        environment = {**os.environ, **given, **changes}
        return subprocess.run(
            ["bash", str(script), str(folder)], env=environment, capture_output=True, text=True, timeout=1800
        )

    return start


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """A whole quickstart: its folder, and what was printed."""
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    done = run(folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, done.stdout


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished quickstart, to be changed."""
    shutil.copytree(finished[0], tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def facts_of(folder):
    return json.loads((folder / "model" / "training.json").read_text(encoding="utf-8"))


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_everything_is_there(finished):
    folder, said = finished
    assert FOLDERS | {"model", "showcase.png", "flag.png"} <= {path.name for path in folder.iterdir()}
    results = json.loads((folder / "evaluation" / "results.json").read_text(encoding="utf-8"))
    assert set(results["config"]["modes"]) >= {"never", "always", "auto"}
    assert results["summary"]["all"]["modes"]["always"]["invocation_ratio"] == 1.0
    for name in ("showcase.png", "flag.png", "evaluation/report.html", "evaluation/results.json", "model/README.md"):
        assert str(folder / name) in said and (folder / name).is_file(), name
    assert f"{results['summary']['all']['modes']['never']['score']:.3f}" in said
    assert "rationales kept" in said and "by the worker that helps" in said and "thinking pays" in said
    with Image.open(folder / "showcase.png") as picture, Image.open(folder / "flag.png") as flag:
        assert picture.width > 1000 and flag.size == (64, 64)


@pytest.mark.slow
def test_the_joint_phase_draws_all_tasks(root, finished):
    from mmemb_r1.atlas import load_atlas

    recipe = yaml.safe_load((root / "experiments" / "quickstart" / "full" / "joint.yaml").read_text(encoding="utf-8"))
    assert set(load_atlas(finished[0] / "atlas").pairs["train"]["task"]) <= set(recipe["task_weights"])


@pytest.mark.slow
def test_the_card_tells_of_all_phases(finished):
    folder, _ = finished
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    for part in ("flag-capital", "selected ones, for", "Before it: gate", "Before it: joint", "thinking pays"):
        assert part in card, part
    record = facts_of(folder / "gate-again")
    assert [one["phase"] for one in [*record["before"], record]] == [
        *("init", "joint", "joint", "gate", "adaptive (GRPO)", "gate")
    ]
    assert [one["steps"] for one in record["before"][1:3]] == [2, 3]
    selection = record["before"][2]["selection"]
    assert "rationales kept; " in selection and selection.endswith("the own ones of tasks without workers")


@pytest.mark.slow
def test_the_joint_phase_drew_from_what_was_selected(finished):
    """Selected rationales of questions of several steps, and those of the others' own."""
    folder, _ = finished
    kept = pq.read_table(folder / "selection" / "selected.parquet")
    said = facts_of(folder / "joint")["rationales"]
    workers = dict(part.rsplit(" ", 1) for part in said.split("; by worker: ")[1].split(", "))
    counts = {one["values"]: one["counts"] for one in kept["worker"].value_counts().to_pylist()}
    assert counts and {name: int(number) for name, number in workers.items() if name != "own"} == counts
    assert int(workers["own"]) > 0


@pytest.mark.slow
def test_every_phase_begins_where_the_one_before_ended(finished):
    from mmemb_r1 import MMEmbR1

    folder, _ = finished
    states = {name: MMEmbR1(str(folder / name / "model"), device="cpu")[0].model.state_dict() for name in PHASES}

    def changed(before, after):
        return {name for name, values in states[after].items() if not states[before][name].equal(values)}

    assert changed("warm-up", "joint") and not any("gate.output" in name for name in changed("warm-up", "joint"))
    assert changed("joint", "gate") and all("gate" in name for name in changed("joint", "gate"))
    assert any("gate" not in name for name in changed("gate", "adaptive"))
    assert changed("adaptive", "gate-again") and all("gate" in name for name in changed("adaptive", "gate-again"))


@pytest.mark.slow
def test_what_is_there_is_not_done_again_and_what_is_lost_is(run, finished, copy):
    """As after a kill: what comes before stays, and the evaluator is not asked again."""
    shutil.rmtree(copy / "adaptive")
    shutil.rmtree(copy / "evaluation")
    kept = ("atlas", "untrained", "warm-up", "rationales", "selection/shards", "joint", "gate")
    before = {name: stamps(copy / name) for name in kept}
    done = run(copy)
    assert done.returncode == 0, done.stderr[-4000:]
    assert {name: stamps(copy / name) for name in kept} == before
    scores = [
        json.loads((folder / "evaluation" / "results.json").read_text(encoding="utf-8"))["summary"]["all"]["modes"]
        for folder in (copy, finished[0])
    ]
    for mode in ("never", "always", "auto"):
        assert scores[0][mode]["score"] == scores[1][mode]["score"]


@pytest.mark.slow
def test_a_stage_that_was_made_anew_leaves_nothing_stale_behind_it(run, copy, recipes, tmp_path):
    """Another recipe is refused in the same folder; made anew in place of the old one, it stops what came of that."""
    other = tmp_path / "recipes"
    shutil.copytree(recipes, other)
    settings = yaml.safe_load((other / "joint.yaml").read_text(encoding="utf-8"))
    (other / "joint.yaml").write_text(yaml.safe_dump({**settings, "learning_rate": 1e-3}), encoding="utf-8")
    refused = run(copy, RECIPES=str(other))
    assert refused.returncode == 2 and "learning_rate was 0.0005, is now 0.001" in refused.stderr
    shutil.rmtree(copy / "joint")
    stale = run(copy, RECIPES=str(other))
    assert stale.returncode == 2 and "gate was begun with other settings or data: weights was" in stale.stderr


@pytest.mark.slow
def test_the_lines_to_paste_work(finished):
    from experiments.quickstart.showcase import lines_to_paste

    folder, said = finished
    lines = lines_to_paste(folder / "model", folder / "flag.png")
    assert lines in said
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")


def test_a_selection_that_kept_nothing_is_told(tmp_path):
    import pyarrow as pa

    from experiments.quickstart.rehearsal import describe_selection

    pq.write_table(pa.table({"worker": pa.array([], pa.string()), "posterior": pa.array([], pa.float32())}),
                   tmp_path / "selected.parquet")  # fmt: skip
    assert describe_selection(tmp_path, tmp_path) == "no rationale was kept"


def test_the_recipes_are_those_of_the_study(root):
    """The same numbers stand in YAML for those who type commands, and in Python for the study."""
    from experiments.pipeline.grpo import GRPO_FIELDS

    def settings(name):
        return yaml.safe_load(
            (root / "experiments" / "quickstart" / "full" / f"{name}.yaml").read_text(encoding="utf-8")
        )

    warm_up, joint = settings("warm-up"), settings("joint")
    augmented = {"augment_pictures": True}
    on_cpu = {**ON_CPU, "report_to": []}
    expected = joint_settings(warm_up_recipe(Recipe(steps=1300)))
    assert {**on_cpu, **warm_up} == {**expected, **augmented}
    changed = {name: joint[name] for name in ("max_steps", "learning_rate", "task_weights", "save_steps")}
    assert {**on_cpu, **joint} == {**joint_settings(Recipe(), **changed), **augmented}
    adaptive = settings("adaptive")
    assert {**GRPO_FIELDS, "max_steps": 50, "save_steps": 25, "seed": 0, "save_total_limit": 1} == adaptive


@pytest.mark.parametrize("size", SIZES)
def test_workers_are_asked_about_questions_of_several_steps_that_are_trained_and_measured(root, size):
    """What `world.sh` says, against the recipes beside it and the tasks of that Atlas."""
    folder = root / "experiments" / "quickstart" / size
    said = subprocess.run(
        ["bash", "-euc", f'source "{folder}/world.sh"; echo "$several_steps $asked"'], capture_output=True, text=True
    )
    several, asked = (words.split(",") for words in said.stdout.split())
    trained = set(yaml.safe_load((folder / "joint.yaml").read_text(encoding="utf-8"))["task_weights"])
    warmed = set(yaml.safe_load((folder / "warm-up.yaml").read_text(encoding="utf-8"))["task_weights"])
    if size == "full":
        assert tuple(several) == MULTI_HOP and asked == ["simple", "multi-hop", "perceptual", "mixed"]
    else:
        assert set(several) < set(MULTI_HOP) and set(asked) == trained
    assert set(several) <= trained and not set(several) & warmed and warmed <= trained


@pytest.mark.parametrize("size", SIZES)
def test_both_phases_pay_the_same_for_a_token(root, size):
    gate, adaptive = (
        yaml.safe_load((root / "experiments" / "quickstart" / name).read_text(encoding="utf-8"))
        for name in ("gate.yaml", f"{size}/adaptive.yaml")
    )
    assert adaptive["cost_weight"] == pytest.approx(gate["token_price"] * Recipe().model["max_reasoning_tokens"])
