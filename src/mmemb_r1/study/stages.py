"""What each task of the study does. Functions take the study and what the task says of itself."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset

from mmemb_r1 import MMEmbR1
from mmemb_r1._files import replaced_file
from mmemb_r1.atlas import Atlas, build_atlas, load_atlas
from mmemb_r1.atlas.thoughts import HELPFUL
from mmemb_r1.evaluation.atlas_tasks import atlas_tasks
from mmemb_r1.evaluation.shortcut_run import RESULT_FILE, ShortcutSettings, diagnose
from mmemb_r1.pipeline import evaluator as evaluators
from mmemb_r1.pipeline.answers import measure_answers
from mmemb_r1.pipeline.gate import fit_gate_of
from mmemb_r1.pipeline.grpo import GRPO_FIELDS, train_adaptive
from mmemb_r1.pipeline.joint import joint_settings, train_from, write_json
from mmemb_r1.pipeline.posterior import (
    judge,
    of_both,
    of_workers,
    quality_of,
    scores_of,
    select_from,
    training_table,
)
from mmemb_r1.pipeline.prior import draw_own, draw_pool
from mmemb_r1.pipeline.rounds import with_segments
from mmemb_r1.pipeline.stage import run_stage
from mmemb_r1.pipeline.tasks import JOINT_TASK_WEIGHTS, MULTI_HOP, POOLED, of_tasks
from mmemb_r1.pipeline.warm_up import warm_up
from mmemb_r1.study.forms import ATLAS_SEED, LEARNING_RATE
from mmemb_r1.study.rows import BY_NAME, ONE_WORKER, POOL_AND_MODEL, Row, worker_of_entities
from mmemb_r1.study.tasks import JUDGES, Study
from mmemb_r1.training.posterior.options import SelectionOptions
from mmemb_r1.training.prior.shards import read_rationales

SELECTED, QUALITY = "selected.parquet", "quality.json"
QUIET = {"disable_tqdm": True}


def build(study: Study) -> None:
    """The Atlas."""
    build_atlas(study.atlas, seed=ATLAS_SEED, **study.form.recipe.atlas)


def train_warm_up(study: Study, seed: int) -> None:
    """What all rows of a seed start from."""
    form, folder = study.form, study.warm_up_of(seed)
    recipe = dataclasses.replace(form.recipe, seed=seed, steps=form.warm_up_steps)
    recipe = dataclasses.replace(recipe, training={**recipe.training, **form.joint, **QUIET})
    checkpoints = study.output / "checkpoints" / f"warm-{seed}"
    facts = asdict(recipe)
    run_stage(folder, facts, lambda made: warm_up(load_atlas(study.atlas), recipe, made, checkpoints))


def train_judge(study: Study, seed: int) -> None:
    """Who judges the rationales."""
    parts = {name: {**fields, **study.form.evaluator, **QUIET} for name, fields in evaluators.PARTS.items()}
    evaluators.train_evaluator(
        load_atlas(study.atlas), study.warm_up_of(seed), study.evaluator_folder.parent, ATLAS_SEED, parts
    )


def pooled_pairs(study: Study, atlas: Atlas) -> Dataset:
    """The pairs of `train` that the workers are asked about."""
    pairs = of_tasks(atlas.pairs["train"], POOLED)
    most, taken, rows = study.form.part_of_pairs, dict.fromkeys(POOLED, 0), []
    for row, task in enumerate(pairs["task"]):
        taken[task] += 1
        if most is None or taken[task] <= most:
            rows.append(row)
    return pairs.select(rows).flatten_indices()


def draw(study: Study) -> None:
    """What the four workers say."""
    atlas, folder = load_atlas(study.atlas), study.output / "prior"
    rationales = draw_pool(atlas, pooled_pairs(study, atlas), folder, ATLAS_SEED)
    _note(folder / "done.json", rationales=len(rationales))


def draw_own_rationales(study: Study, row: str, seed: int) -> None:
    """What the model of the row that this one starts from would think."""
    folder = study.output / "own" / str(seed) / "prior"
    pairs = pooled_pairs(study, load_atlas(study.atlas))
    rationales = draw_own(study.start_of(BY_NAME[row], seed), "model", pairs, folder, ATLAS_SEED)
    _note(folder / "done.json", rationales=len(rationales))


def judge_part(study: Study, part: int, own: int | None = None) -> None:
    """A part of the judging, of the pool's rationales or of those of the model of a seed."""
    import time

    start = time.perf_counter()
    folder = study.output if own is None else study.output / "own" / str(own)
    pairs = pooled_pairs(study, load_atlas(study.atlas))
    rationales = read_rationales(folder / "prior")
    judge(pairs, rationales, study.evaluator_folder, folder / "scores", (part, JUDGES))
    _note(folder / "scores" / f"part-{part}.json", seconds=round(time.perf_counter() - start, 1))


def select(study: Study, row: str, seed: int) -> None:
    """What is kept of the judged rationales in the way of a row, and how good that is."""
    chosen, folder = BY_NAME[row], study.selected(BY_NAME[row], seed)

    def make(made: Path) -> None:
        pairs = pooled_pairs(study, load_atlas(study.atlas))
        scores = scores_of(study.output / "scores")
        if chosen.workers == POOL_AND_MODEL:
            scores = of_both(scores, scores_of(study.output / "own" / str(seed) / "scores"))
        if chosen.workers == ONE_WORKER:
            asked = worker_of_entities(pairs["entity"], list(HELPFUL), ATLAS_SEED)
            scores = of_workers(scores, pairs, asked)
        candidates = select_from(scores, options_of(chosen), made / SELECTED)
        kept = candidates.filter(candidates["kept"])["worker"].value_counts().to_pylist()
        workers = {one["values"]: one["counts"] for one in kept}
        write_json(made / QUALITY, {**quality_of(candidates, pairs), "kept rationales by worker": workers})

    run_stage(folder, {"options": asdict(options_of(chosen)), "workers": chosen.workers}, make)


def options_of(row: Row) -> SelectionOptions:
    """How the rationales of a row are selected."""
    return SelectionOptions(**{"space": "log-odds", "seed": ATLAS_SEED, **row.selection})


def train_joint(study: Study, row: str, seed: int) -> None:
    """The joint phase of a row."""
    chosen, form, folder = BY_NAME[row], study.form, study.folder(row, seed)
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
        start, checkpoints = study.start_of(chosen, seed), study.output / "checkpoints" / f"{row}-{seed}-joint"
        train_from(start, pairs, rationales, settings, made, checkpoints)

    run_stage(folder / "joint", settings, make)


def warm_start_gate(study: Study, row: str, seed: int) -> None:
    """The gate of a row, fitted by supervision on `policy`."""
    rounds, folder = BY_NAME[row].rounds, study.folder(row, seed)

    def make(made: Path) -> None:
        atlas = load_atlas(study.atlas)
        policy = of_tasks(atlas.pairs["policy"], set(JOINT_TASK_WEIGHTS))
        facts = fit_gate_of(folder / "joint", policy, atlas.candidates, made, rounds)
        write_json(made / "gate.json", facts)

    run_stage(folder / "gate", {"rounds": rounds}, make)


def train_grpo(study: Study, row: str, seed: int) -> None:
    """The adaptive phase of a row."""
    form, folder = study.form, study.folder(row, seed)
    settings = {**GRPO_FIELDS, "max_steps": form.grpo_steps, "seed": seed, **form.grpo, **QUIET}

    def make(made: Path) -> None:
        pairs = load_atlas(study.atlas).pairs
        policy, joint = (of_tasks(pairs[split], set(JOINT_TASK_WEIGHTS)) for split in ("policy", "train"))
        checkpoints = study.output / "checkpoints" / f"{row}-{seed}-grpo"
        train_adaptive(folder / "gate", policy, joint, settings, made, checkpoints)

    run_stage(folder / "grpo", settings, make)


def answer(study: Study, row: str, seed: int, state: str) -> None:
    """What a model of a row answers on the test split."""
    rounds, folder = BY_NAME[row].rounds, study.folder(row, seed)

    def make(made: Path) -> None:
        atlas = load_atlas(study.atlas)
        test = of_tasks(atlas.pairs["test"], set(JOINT_TASK_WEIGHTS))
        measure_answers(folder / state, test, atlas.candidates, made, rounds)

    run_stage(folder / f"answers-{state}", {"state": state, "split": "test", "rounds": rounds}, make)


def check_shortcut(study: Study, row: str, seed: int, state: str) -> None:
    """Whether a model of a row reads its thoughts, on questions of several steps of the test split."""
    rounds, folder = BY_NAME[row].rounds, study.folder(row, seed)
    settings = ShortcutSettings(max_reasoning_rounds=rounds)

    def make(made: Path) -> None:
        atlas = load_atlas(study.atlas)
        tasks = atlas_tasks(of_tasks(atlas.pairs["test"], MULTI_HOP), atlas.candidates)
        found = diagnose(MMEmbR1(str(folder / state), device="cpu"), tasks, settings, progress=False)
        write_json(made / RESULT_FILE, found)

    run_stage(folder / f"shortcut-{state}", {"state": state, "split": "test", **asdict(settings)}, make)


def _note(path: Path, **facts: Any) -> None:
    with replaced_file(path) as temporary:
        write_json(temporary, facts)
