"""Do what each task of the study asks for. Functions take the study and the arguments of the task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from experiments.atlas_workers.scripted import HELPFUL, POOL
from experiments.pipeline import evaluator as evaluators
from experiments.pipeline.gate import fit_gate_of
from experiments.pipeline.grpo import GRPO_FIELDS, train_adaptive
from experiments.pipeline.joint import joint_settings, train_from
from experiments.pipeline.outcomes import measure_outcomes
from experiments.pipeline.posterior import (
    QUALITY,
    SELECTED,
    SHARED,
    merged_scores,
    quality_of,
    read_scores,
    rows_of_workers,
    score_rationales,
    select_from,
    training_table,
)
from experiments.pipeline.prior import NUM_SAMPLES, draw_of, draw_own, draw_pool
from experiments.pipeline.rounds import with_segments
from experiments.pipeline.stage import MadeOf, run_noted, run_stage
from experiments.pipeline.tasks import JOINT_TASK_WEIGHTS, MULTI_HOP, POOLED, at_most, of_tasks
from experiments.pipeline.warm_up import warm_up
from experiments.study.forms import ATLAS_SEED, LEARNING_RATE
from experiments.study.rows import BY_NAME, ERRORS, ONE_WORKER, POOL_AND_MODEL, Row
from experiments.study.tasks import ERRORS_FOLDER, NUM_PARTS, Study, own_folder
from mmemb_r1 import MMEmbR1
from mmemb_r1.atlas import Atlas, build_atlas, load_atlas
from mmemb_r1.evaluation.atlas_tasks import atlas_tasks
from mmemb_r1.evaluation.diagnose.run import RESULT_FILE, ShortcutSettings, run_diagnosis
from mmemb_r1.runs import write_json
from mmemb_r1.training.gate_phase import GATE_FILE
from mmemb_r1.training.rationales.table import read_rationales
from mmemb_r1.training.selection.config import SelectionOptions

QUIET = {"disable_tqdm": True}


def build(study: Study, *, made_of: MadeOf) -> None:
    """Build the Atlas."""
    arguments = {"seed": ATLAS_SEED, **study.form.recipe.atlas}

    def make(made: Path) -> None:
        build_atlas(made, **arguments)

    run_stage(study.atlas, arguments, make, made_of=made_of)


def train_warm_up(study: Study, seed: int, *, made_of: MadeOf) -> None:
    """Train what all rows of a seed start from."""
    form, folder = study.form, study.warm_up_of(seed)
    recipe = dataclasses.replace(form.recipe, seed=seed, steps=form.warm_up_steps)
    recipe = dataclasses.replace(recipe, training={**recipe.training, **form.joint, **QUIET})
    checkpoints = study.output / "checkpoints" / f"warm-{seed}"

    def make(made: Path) -> None:
        warm_up(load_atlas(study.atlas), recipe, made, checkpoints)

    run_stage(folder, asdict(recipe), make, made_of=made_of, checkpoints=checkpoints)


def make_evaluator(study: Study, *, made_of: MadeOf) -> None:
    """Train the model that scores the rationales."""
    parts = {name: {**fields, **study.form.evaluator, **QUIET} for name, fields in evaluators.PARTS.items()}
    atlas, start, folder = load_atlas(study.atlas), study.warm_up_of(ATLAS_SEED), study.evaluator_folder.parent
    evaluators.train_evaluator(atlas, start, folder, ATLAS_SEED, parts, made_of)


def pooled_pairs(study: Study, atlas: Atlas) -> Dataset:
    """The pairs of `train` for which workers write rationales."""
    pairs = of_tasks(atlas.pairs["train"], POOLED)
    most = study.form.part_of_pairs
    return pairs if most is None else at_most(pairs, most)


def draw(study: Study, *, made_of: MadeOf) -> None:
    """Draw the rationales of the four workers."""

    def work(folder: Path, atlas: Atlas, pairs: Dataset) -> Dataset:
        return draw_pool(atlas, pairs, folder, ATLAS_SEED)

    _draw(study, study.output / "prior", {}, work, made_of)


def draw_errors(study: Study, *, made_of: MadeOf) -> None:
    """Draw the wrong rationales of the single worker: as many as those of the pool."""
    number = NUM_SAMPLES * (len(POOL) - 1)

    def work(folder: Path, atlas: Atlas, pairs: Dataset) -> Dataset:
        return draw_of(ERRORS, number, atlas, pairs, folder, ATLAS_SEED)

    _draw(study, study.output / ERRORS_FOLDER / "prior", {"worker": ERRORS, "samples": number}, work, made_of)


def draw_own_rationales(study: Study, row: str, seed: int, *, made_of: MadeOf) -> None:
    """Draw rationales from the model that a row starts from."""
    start = study.start_of(BY_NAME[row], seed)

    def work(folder: Path, atlas: Atlas, pairs: Dataset) -> Dataset:
        return draw_own(start, "model", pairs, folder, ATLAS_SEED)

    _draw(study, study.output / own_folder(seed) / "prior", {"row": row, "seed": seed}, work, made_of)


def _draw(
    study: Study,
    folder: Path,
    facts: dict[str, Any],
    work: Callable[[Path, Atlas, Dataset], Dataset],
    made_of: MadeOf,
) -> None:
    def drawn() -> dict[str, int]:
        atlas = load_atlas(study.atlas)
        return {"rationales": len(work(folder, atlas, pooled_pairs(study, atlas)))}

    run_noted(folder / "done.json", facts, drawn, made_of=made_of)


def score_part(study: Study, folder: str, part: int, *, made_of: MadeOf) -> None:
    """Score a part of the rationales of the pool, of those with errors of one kind, or of those of a seed's model."""
    place = study.output / folder

    def work() -> None:
        rationales = read_rationales(place / "prior")
        if folder == ERRORS_FOLDER:  # the first of them are the pool's, and scored with it
            rationales = rationales.filter(lambda sample: sample >= NUM_SAMPLES, input_columns="sample")
        pairs = pooled_pairs(study, load_atlas(study.atlas))
        score_rationales(pairs, rationales, study.evaluator_folder, place / "scores", (part, NUM_PARTS))

    run_noted(place / "scores" / f"part-{part}.json", {"part": part, "of": NUM_PARTS}, work, made_of=made_of)


def select(study: Study, row: str, seed: int, *, made_of: MadeOf) -> None:
    """Select from the scored rationales in the way of a row, and note how good the selection is."""
    chosen, folder = BY_NAME[row], study.selected(BY_NAME[row], seed)

    def make(made: Path) -> None:
        pairs = pooled_pairs(study, load_atlas(study.atlas))
        candidates = select_from(scores_for(study, chosen, seed), options_of(chosen), made / SELECTED)
        kept = candidates.filter(candidates["kept"])["worker"].value_counts().to_pylist()
        workers = {one["values"]: one["counts"] for one in kept}
        write_json(made / QUALITY, {**quality_of(candidates, pairs), "kept rationales by worker": workers})

    run_stage(folder, {"options": asdict(options_of(chosen)), "workers": chosen.workers}, make, made_of=made_of)


def scores_for(study: Study, row: Row, seed: int) -> pa.Table:
    """Read the scored rationales that a row selects from."""
    scores = read_scores(study.output / "scores")
    if row.workers == POOL_AND_MODEL:
        return merged_scores(scores, read_scores(study.output / own_folder(seed) / "scores"))
    if row.workers == ONE_WORKER:
        right = [worker for worker, helps in HELPFUL.items() if helps]
        return merged_scores(
            rows_of_workers(scores, [*right, ERRORS]), read_scores(study.output / ERRORS_FOLDER / "scores")
        )
    return scores


def options_of(row: Row) -> SelectionOptions:
    """How the rationales of a row are selected."""
    return dataclasses.replace(SHARED, **row.selection)


def train_joint(study: Study, row: str, seed: int, *, made_of: MadeOf) -> None:
    """Train the joint phase of a row."""
    chosen, form, folder = BY_NAME[row], study.form, study.folder(row, seed)
    checkpoints = study.output / "checkpoints" / f"{row}-{seed}-joint"
    settings = joint_settings(
        dataclasses.replace(form.recipe, seed=seed),
        **{
            "max_steps": form.joint_steps,
            "learning_rate": LEARNING_RATE,
            "task_weights": JOINT_TASK_WEIGHTS,
            "max_reasoning_rounds": chosen.rounds,
            **form.joint,
            **chosen.joint,
            **QUIET,
        },
    )

    def make(made: Path) -> None:
        pairs = of_tasks(load_atlas(study.atlas).pairs["train"], set(JOINT_TASK_WEIGHTS))
        rationales = training_table(study.selected(chosen, seed) / SELECTED, pairs)
        if chosen.rounds > 1:
            rationales = with_segments(rationales)
        train_from(study.start_of(chosen, seed), pairs, rationales, settings, made, checkpoints)

    run_stage(folder / "joint", settings, make, made_of=made_of, checkpoints=checkpoints)


def warm_start_gate(study: Study, row: str, seed: int, *, made_of: MadeOf) -> None:
    """Fit the gate of a row by supervision on `policy`."""
    rounds, folder = BY_NAME[row].rounds, study.folder(row, seed)

    def make(made: Path) -> None:
        atlas = load_atlas(study.atlas)
        policy = of_tasks(atlas.pairs["policy"], set(JOINT_TASK_WEIGHTS))
        facts = fit_gate_of(folder / "joint", policy, atlas.candidates, made, rounds)
        write_json(made / GATE_FILE, facts)

    run_stage(folder / "gate", {"rounds": rounds}, make, made_of=made_of)


def train_grpo(study: Study, row: str, seed: int, *, made_of: MadeOf) -> None:
    """Train the adaptive phase of a row."""
    form, folder = study.form, study.folder(row, seed)
    checkpoints = study.output / "checkpoints" / f"{row}-{seed}-grpo"
    settings = {**GRPO_FIELDS, "max_steps": form.grpo_steps, "seed": seed, **form.grpo, **QUIET}

    def make(made: Path) -> None:
        pairs = load_atlas(study.atlas).pairs
        policy, joint = (of_tasks(pairs[split], set(JOINT_TASK_WEIGHTS)) for split in ("policy", "train"))
        train_adaptive(folder / "gate", policy, joint, settings, made, checkpoints)

    run_stage(folder / "grpo", settings, make, made_of=made_of, checkpoints=checkpoints)


def measure(study: Study, row: str, seed: int, state: str, *, made_of: MadeOf) -> None:
    """Evaluate a model of a row on the test split, query by query."""
    rounds, folder = BY_NAME[row].rounds, study.folder(row, seed)

    def make(made: Path) -> None:
        atlas = load_atlas(study.atlas)
        test = of_tasks(atlas.pairs["test"], set(JOINT_TASK_WEIGHTS))
        measure_outcomes(folder / state, test, atlas.candidates, made, rounds)

    facts = {"state": state, "split": "test", "rounds": rounds}
    run_stage(folder / f"outcomes-{state}", facts, make, made_of=made_of)


def check_shortcut(study: Study, row: str, seed: int, state: str, *, made_of: MadeOf) -> None:
    """Test whether a model of a row reads its rationales, on questions of several steps of the test split."""
    rounds, folder = BY_NAME[row].rounds, study.folder(row, seed)
    settings = ShortcutSettings(max_reasoning_rounds=rounds, max_queries=study.form.shortcut_queries)

    def make(made: Path) -> None:
        atlas = load_atlas(study.atlas)
        tasks = atlas_tasks(of_tasks(atlas.pairs["test"], MULTI_HOP), atlas.candidates)
        found = run_diagnosis(MMEmbR1(str(folder / state), device="cpu"), tasks, settings, progress=False)
        write_json(made / RESULT_FILE, found)

    facts = {"state": state, "split": "test", **asdict(settings)}
    run_stage(folder / f"shortcut-{state}", facts, make, made_of=made_of)
