"""List what has to be done, in order: tasks that know what they need and where their result lies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.study.forms import ATLAS_SEED, WARM_UP, Form
from experiments.study.rows import BY_NAME, FULL, ONE_WORKER, POOL_AND_MODEL, ROWS, Row

CLAIM = "study.json"  # what the study was begun with
NUM_PARTS = 2  # in which an evaluator scores rationales
ERRORS_FOLDER = "errors"  # of the wrong rationales of the single worker


@dataclass(frozen=True)
class Study:
    """
    A study: what it trains, and where everything lies.

    Args:
        output: the study's folder.
        form: how much is trained.
        rows: what is trained.
        warm_up: the checkpoint that the rows of seed 0 start from. Default: made in `output`.
        evaluator: the model that scores rationales. Default: as the form says.
        seeds: of all rows. Default: as the form says.
    """

    output: Path
    form: Form
    rows: tuple[Row, ...]
    warm_up: Path | None = None
    evaluator: Path | None = None
    seeds: tuple[int, ...] | None = None

    def seeds_of(self, row: Row) -> tuple[int, ...]:
        """The seeds of a row."""
        return self.form.seeds_of(row.name) if self.seeds is None else self.seeds

    @property
    def atlas(self) -> Path:
        """The folder of the Atlas."""
        return self.output / "atlas"

    def warm_up_of(self, seed: int) -> Path:
        """The checkpoint that a seed starts from."""
        given = self.warm_up if seed == ATLAS_SEED else None
        return given or self.output / f"warm-{seed}"

    @property
    def evaluator_folder(self) -> Path:
        """The evaluator; that of all seeds, which comes from the warm-up of seed 0."""
        if self.evaluator is None and self.form.evaluator_from == WARM_UP:
            return self.warm_up_of(ATLAS_SEED)
        return self.evaluator or self.output / "evaluator" / "atlas-evaluator"

    def selected(self, row: Row, seed: int) -> Path:
        """The folder of the rationales that a row trains on."""
        own = f"{row.table}-{seed}" if row.workers == POOL_AND_MODEL else row.table
        return self.output / "selection" / own

    def folder(self, row: str, seed: int) -> Path:
        """All that a row of a seed makes."""
        return self.output / "rows" / f"{row}-{seed}"

    def start_of(self, row: Row, seed: int) -> Path:
        """The checkpoint that a row's joint phase starts from."""
        return self.warm_up_of(seed) if row.start is None else self.folder(row.start, seed) / "grpo"


@dataclass(frozen=True)
class Task:
    """
    One stage.

    Args:
        name: unique, and told to the user.
        done: the file or folder that is there when it was done.
        function: of `experiments.study.stages`.
        arguments: of it, besides the study.
        needs: names of the tasks that come before.
    """

    name: str
    done: Path
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs: Sequence[str] = ()


def whole(study: Study) -> Study:
    """
    The same study with all rows, and with the seeds that any of them has in the folder besides its own: what earlier
    runs found stays part of the results. (A row has no outcomes of a seed that it was not trained with.)
    """
    seeds = {seed for row in study.rows for seed in study.seeds_of(row)}
    for folder in (study.output / "rows").glob("*-*"):
        name, _, seed = folder.name.rpartition("-")
        if name in BY_NAME and seed.isdecimal():
            seeds.add(int(seed))
    return dataclasses.replace(study, rows=ROWS, seeds=tuple(sorted(seeds)))


def tasks_of(study: Study) -> list[Task]:
    """List all tasks, each after what it needs, and those early that most others wait for."""
    output = study.output
    trained = [row for row in study.rows if row.of is None]
    seeds = sorted({seed for row in trained for seed in study.seeds_of(row)})
    tasks = [Task("Atlas", study.atlas, "build")]
    given: set[str] = set()  # tasks whose result was given to the study
    evaluator, first = "evaluator", f"warm-up, seed {ATLAS_SEED}"
    for seed in seeds if study.evaluator is not None else sorted({ATLAS_SEED, *seeds}):
        name = f"warm-up, seed {seed}"
        if study.warm_up_of(seed) == study.warm_up:
            given.add(name)
        else:
            tasks.append(Task(name, study.warm_up_of(seed), "train_warm_up", {"seed": seed}, ("Atlas",)))
    if study.evaluator is not None:
        given.add(evaluator)
    elif study.form.evaluator_from == WARM_UP:
        evaluator = first
    else:
        tasks.append(Task(evaluator, study.evaluator_folder, "make_evaluator", {}, ("Atlas", first)))
    tasks.append(Task("prior", output / "prior" / "done.json", "draw", {}, ("Atlas",)))
    tasks += scoring(study, "scoring", "", ("prior", evaluator))
    if any(row.workers == ONE_WORKER for row in trained):
        name, done = "prior: errors of one kind", output / ERRORS_FOLDER / "prior" / "done.json"
        tasks.append(Task(name, done, "draw_errors", {}, ("Atlas",)))
        tasks += scoring(study, "scoring of these", ERRORS_FOLDER, (name, evaluator))
    for table in dict.fromkeys(row.table for row in trained if row.workers != POOL_AND_MODEL):
        row = next(row for row in trained if row.table == table)
        names = ["scoring", "scoring of these"] if row.workers == ONE_WORKER else ["scoring"]
        arguments = {"row": row.name, "seed": ATLAS_SEED}
        done = study.selected(row, ATLAS_SEED)
        tasks.append(Task(f"selection: {table}", done, "select", arguments, parts_of(*names)))
    for seed in seeds:
        for row in trained:
            if seed in study.seeds_of(row):
                tasks += row_tasks(study, row, seed, evaluator)
    return [Task(t.name, t.done, t.function, t.arguments, [n for n in t.needs if n not in given]) for t in tasks]


def scoring(study: Study, name: str, folder: str, needs: Sequence[str]) -> list[Task]:
    """The parts of scoring the rationales of a folder of the study, which may be done at the same time."""
    places = [study.output / folder / "scores" / f"part-{part}.json" for part in range(1, NUM_PARTS + 1)]
    return [
        Task(task, done, "score_part", {"folder": folder, "part": part}, tuple(needs))
        for part, (task, done) in enumerate(zip(parts_of(name), places, strict=True), start=1)
    ]


def parts_of(*names: str) -> tuple[str, ...]:
    """
    >>> parts_of("scoring")
    ('scoring, part 1 of 2', 'scoring, part 2 of 2')
    """
    return tuple(f"{name}, part {part} of {NUM_PARTS}" for name in names for part in range(1, NUM_PARTS + 1))


def own_folder(seed: int) -> str:
    """The folder of the rationales that the model of a seed writes itself."""
    return f"own/{seed}"


def row_tasks(study: Study, row: Row, seed: int, evaluator: str) -> list[Task]:
    """What a row of a seed takes, from its selection to the outcomes of its last model. `evaluator` is the task that
    makes the evaluator."""
    name, folder = f"{row.name}, seed {seed}", study.folder(row.name, seed)
    arguments = {"row": row.name, "seed": seed}
    tasks: list[Task] = []
    selection = f"selection: {row.table}"
    started = f"warm-up, seed {seed}" if row.start is None else f"{row.start}, seed {seed}: GRPO"
    if row.workers == POOL_AND_MODEL:
        own, proposed, scored = own_folder(seed), f"{name}: the model's rationales", f"{name}: scoring"
        done = study.output / own / "prior" / "done.json"
        tasks.append(Task(proposed, done, "draw_own_rationales", arguments, ("Atlas", started)))
        tasks += scoring(study, scored, own, (proposed, evaluator))
        selection = f"{name}: selection"
        tasks.append(Task(selection, study.selected(row, seed), "select", arguments, parts_of("scoring", scored)))
    tasks += [
        Task(f"{name}: joint phase", folder / "joint", "train_joint", arguments, (selection, started)),
        Task(f"{name}: gate", folder / "gate", "warm_start_gate", arguments, (f"{name}: joint phase",)),
        Task(f"{name}: GRPO", folder / "grpo", "train_grpo", arguments, (f"{name}: gate",)),
    ]
    for state, made in (("gate", "gate"), ("grpo", "GRPO")):
        if state == "grpo" or row.name == FULL:
            tasks.append(
                Task(
                    f"{name}: outcomes after {made}",
                    folder / f"outcomes-{state}",
                    "measure",
                    {**arguments, "state": state},
                    (f"{name}: {made}",),
                )
            )
            tasks.append(
                Task(
                    f"{name}: shortcut test after {made}",
                    folder / f"shortcut-{state}",
                    "check_shortcut",
                    {**arguments, "state": state},
                    (f"{name}: {made}",),
                )
            )
    return tasks
