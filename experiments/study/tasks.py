"""What has to be done, in which order: a list of stages that know what they need and where their result lies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.study.forms import ATLAS_SEED, WARM_UP, Form
from experiments.study.rows import BY_NAME, FULL, ONE_WORKER, POOL_AND_MODEL, ROWS, Row

CLAIM = "study.json"  # what the study was begun with
JUDGES = 2  # parts that the judging is done in
ERRORS_FOLDER = "errors"  # of what the single worker says besides


@dataclass(frozen=True)
class Study:
    """
    Where everything lies.

    Args:
        output: the study's folder.
        form: how much is trained.
        rows: what is trained.
        warm_up: the checkpoint that the rows of seed 0 start from. Default: made in `output`.
        evaluator: who judges. Default: as the form says.
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
        """Who judges. All seeds have the same judge, which comes from the warm-up of seed 0."""
        if self.evaluator is None and self.form.judged_by == WARM_UP:
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
        done: what is there when it was done.
        function: of `experiments.study.stages`.
        arguments: of it, besides the study.
        needs: names of tasks that come before.
    """

    name: str
    done: Path
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs: Sequence[str] = ()


def whole(study: Study) -> Study:
    """
    The same study with all rows, and with the seeds that any of them has in the folder besides its own: what earlier
    runs found stays part of the results. (A row has no answers of a seed that it was not trained with.)
    """
    seeds = {seed for row in study.rows for seed in study.seeds_of(row)}
    for folder in (study.output / "rows").glob("*-*"):
        name, _, seed = folder.name.rpartition("-")
        if name in BY_NAME and seed.isdecimal():
            seeds.add(int(seed))
    return dataclasses.replace(study, rows=ROWS, seeds=tuple(sorted(seeds)))


def tasks_of(study: Study) -> list[Task]:
    """All stages; whatever is needed first, and what most waits for comes early."""
    output = study.output
    trained = [row for row in study.rows if row.of is None]
    seeds = sorted({seed for row in trained for seed in study.seeds_of(row)})
    tasks = [Task("Atlas", study.atlas, "build")]
    given: set[str] = set()  # what lies elsewhere and is there
    judge, first = "evaluator", f"warm-up, seed {ATLAS_SEED}"
    for seed in seeds if study.evaluator is not None else sorted({ATLAS_SEED, *seeds}):
        name = f"warm-up, seed {seed}"
        if study.warm_up_of(seed) == study.warm_up:
            given.add(name)
        else:
            tasks.append(Task(name, study.warm_up_of(seed), "train_warm_up", {"seed": seed}, ("Atlas",)))
    if study.evaluator is not None:
        given.add(judge)
    elif study.form.judged_by == WARM_UP:
        judge = first
    else:
        tasks.append(Task(judge, study.evaluator_folder, "train_judge", {}, ("Atlas", first)))
    tasks.append(Task("prior", output / "prior" / "done.json", "draw", {}, ("Atlas",)))
    tasks += judging(study, "judging", "", ("prior", judge))
    if any(row.workers == ONE_WORKER for row in trained):
        name, done = "prior: errors of one kind", output / ERRORS_FOLDER / "prior" / "done.json"
        tasks.append(Task(name, done, "draw_errors", {}, ("Atlas",)))
        tasks += judging(study, "judging of these", ERRORS_FOLDER, (name, judge))
    for table in dict.fromkeys(row.table for row in trained if row.workers != POOL_AND_MODEL):
        row = next(row for row in trained if row.table == table)
        names = ["judging", "judging of these"] if row.workers == ONE_WORKER else ["judging"]
        arguments = {"row": row.name, "seed": ATLAS_SEED}
        done = study.selected(row, ATLAS_SEED)
        tasks.append(Task(f"selection: {table}", done, "select", arguments, parts_of(*names)))
    for seed in seeds:
        for row in trained:
            if seed in study.seeds_of(row):
                tasks += row_tasks(study, row, seed, judge)
    return [Task(t.name, t.done, t.function, t.arguments, [n for n in t.needs if n not in given]) for t in tasks]


def judging(study: Study, name: str, folder: str, needs: Sequence[str]) -> list[Task]:
    """The parts of judging the rationales of a folder in the study's, which may be done at the same time."""
    places = [study.output / folder / "scores" / f"part-{part}.json" for part in range(1, JUDGES + 1)]
    return [
        Task(task, done, "judge_part", {"folder": folder, "part": part}, tuple(needs))
        for part, (task, done) in enumerate(zip(parts_of(name), places, strict=True), start=1)
    ]


def parts_of(*names: str) -> tuple[str, ...]:
    """
    >>> parts_of("judging")
    ('judging, part 1 of 2', 'judging, part 2 of 2')
    """
    return tuple(f"{name}, part {part} of {JUDGES}" for name in names for part in range(1, JUDGES + 1))


def own_folder(seed: int) -> str:
    """Of what the model of a seed says itself."""
    return f"own/{seed}"


def row_tasks(study: Study, row: Row, seed: int, judge: str) -> list[Task]:
    """What a row of a seed takes, from its selection to what its last model answers. `judge` is the task that makes
    the evaluator."""
    name, folder = f"{row.name}, seed {seed}", study.folder(row.name, seed)
    arguments = {"row": row.name, "seed": seed}
    tasks: list[Task] = []
    selection = f"selection: {row.table}"
    started = f"warm-up, seed {seed}" if row.start is None else f"{row.start}, seed {seed}: GRPO"
    if row.workers == POOL_AND_MODEL:
        own, proposed, judged = own_folder(seed), f"{name}: the model's rationales", f"{name}: judging"
        done = study.output / own / "prior" / "done.json"
        tasks.append(Task(proposed, done, "draw_own_rationales", arguments, ("Atlas", started)))
        tasks += judging(study, judged, own, (proposed, judge))
        selection = f"{name}: selection"
        tasks.append(Task(selection, study.selected(row, seed), "select", arguments, parts_of("judging", judged)))
    tasks += [
        Task(f"{name}: joint phase", folder / "joint", "train_joint", arguments, (selection, started)),
        Task(f"{name}: gate", folder / "gate", "warm_start_gate", arguments, (f"{name}: joint phase",)),
        Task(f"{name}: GRPO", folder / "grpo", "train_grpo", arguments, (f"{name}: gate",)),
    ]
    for state, made in (("gate", "gate"), ("grpo", "GRPO")):
        if state == "grpo" or row.name == FULL:
            tasks.append(
                Task(
                    f"{name}: answers after {made}",
                    folder / f"answers-{state}",
                    "answer",
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
