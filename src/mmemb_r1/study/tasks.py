"""What has to be done, in which order: a list of stages that know what they need and where their result lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmemb_r1.study.forms import Form
from mmemb_r1.study.rows import FULL, POOL_AND_MODEL, Row

JUDGES = 2  # parts that the judging is done in


@dataclass(frozen=True)
class Study:
    """
    Where everything lies.

    Args:
        output: the study's folder.
        form: how much is trained.
        rows: what is trained.
        warm_up: the checkpoint that the rows of the first seed start from. Default: made in `output`.
        evaluator: who judges. Default: made in `output`.
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
    def first_seed(self) -> int:
        """The seed of the rows that have one only."""
        return self.seeds_of(self.rows[0])[0]

    @property
    def atlas(self) -> Path:
        """The folder of the Atlas."""
        return self.output / "atlas"

    def warm_up_of(self, seed: int) -> Path:
        """The checkpoint that a seed starts from."""
        given = self.warm_up if seed == self.first_seed else None
        return given or self.output / f"warm-{seed}"

    @property
    def evaluator_folder(self) -> Path:
        """Who judges."""
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
        function: of `mmemb_r1.study.stages`.
        arguments: of it, besides the study.
        needs: names of tasks that come before.
    """

    name: str
    done: Path
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs: Sequence[str] = ()


def tasks_of(study: Study) -> list[Task]:
    """All stages; whatever is needed first, and what most waits for comes early."""
    output = study.output
    trained = [row for row in study.rows if row.of is None]
    seeds = sorted({seed for row in trained for seed in study.seeds_of(row)})
    first = study.first_seed
    tasks = [Task("Atlas", study.atlas, "build")]
    given: set[str] = set()  # what lies elsewhere and is there
    for seed in seeds:
        if study.warm_up_of(seed) == study.warm_up:
            given.add(f"warm-up, seed {seed}")
            continue
        tasks.append(
            Task(f"warm-up, seed {seed}", study.warm_up_of(seed), "train_warm_up", {"seed": seed}, ("Atlas",))
        )
    if study.evaluator is None:
        tasks.append(
            Task(
                "evaluator",
                study.evaluator_folder,
                "train_judge",
                {"seed": first},
                ("Atlas", f"warm-up, seed {first}"),
            )
        )
    else:
        given.add("evaluator")
    tasks.append(Task("prior", output / "prior" / "done.json", "draw", {}, ("Atlas",)))
    tasks += judging(output / "scores", "judging", {}, ("prior", "evaluator"))
    for table in dict.fromkeys(row.table for row in trained if row.workers != POOL_AND_MODEL):
        row = next(row for row in trained if row.table == table)
        tasks.append(
            Task(
                f"selection: {table}",
                study.selected(row, first),
                "select",
                {"row": row.name, "seed": first},
                tuple(f"judging, part {part} of {JUDGES}" for part in range(1, JUDGES + 1)),
            )
        )
    for seed in seeds:
        for row in trained:
            if seed in study.seeds_of(row):
                tasks += row_tasks(study, row, seed)
    return [Task(t.name, t.done, t.function, t.arguments, [n for n in t.needs if n not in given]) for t in tasks]


def judging(folder: Path, name: str, arguments: Mapping[str, Any], needs: Sequence[str]) -> list[Task]:
    """The parts of a judging, which may be done at the same time."""
    return [
        Task(
            f"{name}, part {part} of {JUDGES}",
            folder / f"part-{part}.json",
            "judge_part",
            {**arguments, "part": part},
            tuple(needs),
        )
        for part in range(1, JUDGES + 1)
    ]


def row_tasks(study: Study, row: Row, seed: int) -> list[Task]:
    """What a row of a seed takes, from its selection to what its last model answers."""
    name, folder = f"{row.name}, seed {seed}", study.folder(row.name, seed)
    arguments = {"row": row.name, "seed": seed}
    tasks: list[Task] = []
    selection = f"selection: {row.table}"
    started = f"warm-up, seed {seed}" if row.start is None else f"{row.start}, seed {seed}: GRPO"
    if row.workers == POOL_AND_MODEL:
        own = study.output / "own" / str(seed)
        proposed, judged = f"{name}: the model's rationales", f"{name}: judging"
        tasks.append(Task(proposed, own / "prior" / "done.json", "draw_own_rationales", arguments, (started,)))
        tasks += judging(own / "scores", judged, {"own": seed}, (proposed, "evaluator"))
        parts = [f"{what}, part {part} of {JUDGES}" for what in ("judging", judged) for part in range(1, JUDGES + 1)]
        selection = f"{name}: selection"
        tasks.append(Task(selection, study.selected(row, seed), "select", arguments, tuple(parts)))
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
