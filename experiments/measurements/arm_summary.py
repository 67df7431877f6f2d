"""Summarise the outcomes of the arms, over seeds and with intervals."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.pipeline.tasks import FLAGS, MULTI_HOP, NEIGHBOURS, PICTURE_TARGETS
from mmemb_r1.evaluation.statistics import clustered_bootstrap

GROUPS = {"flag": FLAGS, "neighbour": NEIGHBOURS, "multi-hop": MULTI_HOP}
# One arm minus another in a mode: does selection pay, and does thinking cost the direct path?
DIFFERENCES = (
    ("selected", "unselected", "always"),
    ("selected", "unselected", "never"),
    ("selected", "direct", "never"),
)
MATCHED, MIXED = ("never/never", "always/always"), ("never/always", "always/never")


@dataclass(frozen=True)
class ArmOutcomes:
    """
    The outcomes of the models of one arm on the same queries.

    Args:
        seeds: of the models, S of them.
        ids: `(N,)` pair id of each query.
        tasks: `(N,)`.
        entities: `(N,)` what each query is about.
        columns: name -> `(S, N)`.
    """

    seeds: list[int]
    ids: list[str]
    tasks: npt.NDArray[np.str_]
    entities: npt.NDArray[np.str_]
    columns: dict[str, npt.NDArray[np.float64]]

    def estimate(self, values: npt.NDArray[np.float64], tasks: Sequence[str]) -> dict[str, Any]:
        """
        The mean over tasks of the means over queries, with a 95 % interval clustered by what they are about.

        Args:
            values: `(S, N)`; seeds are averaged.
            tasks: of which queries; those that are not there are left out.

        Returns:
            `mean`, `low`, `high`, `by seed`, and the numbers of `clusters` and `queries`.
        """
        rows = np.isin(self.tasks, tasks)
        names, entities = self.tasks[rows].tolist(), self.entities[rows].tolist()
        by_seed = [clustered_bootstrap(each[rows], entities, names, num_samples=1).mean for each in values]
        interval = clustered_bootstrap(values.mean(axis=0)[rows], entities, names)
        return {
            **interval._asdict(),
            "by seed": by_seed,
            "clusters": len(set(entities)),
            "queries": len(entities),
        }


def gathered(tables: Mapping[int, Mapping[str, Sequence[Any]]]) -> ArmOutcomes:
    """Seed -> table of one arm, as one object."""
    first = next(iter(tables.values()))
    if any(table["pair_id"] != first["pair_id"] for table in tables.values()):
        raise ValueError("the seeds of an arm were not asked the same questions; remove their evaluations")
    numbers = [name for name in first if name not in ("pair_id", "task", "entity")]
    return ArmOutcomes(
        list(tables),
        list(first["pair_id"]),
        np.array(first["task"]),
        np.array(first["entity"]),
        {name: np.array([table[name] for table in tables.values()], dtype=float) for name in numbers},
    )


def summarise(run: Path, split: str) -> dict[str, Any]:
    """
    Sum up what lies in `run / "evaluations"`, whatever arms and seeds are there.

    Returns:
        `arms`: arm -> `seeds` and, per group of tasks and per task, what `ArmOutcomes.estimate` gives of `never` and
        `always` (R@1) and `right` (share of right rationales); `differences`: the same of one arm minus another;
        `paths`: arm -> R@1 per pair of paths on the tasks whose targets are pictures, and mixed minus matched ones;
        `depth`: arm -> split -> R@1 after each round, and what each round adds.

    Raises:
        ValueError: if nothing was evaluated on that split.
    """
    runs: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for path in sorted((run / "evaluations").glob(f"*-{split}.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        runs[result["arm"]][result["seed"]] = result
    if not runs:
        raise ValueError(f"{run} holds no evaluation on {split!r}; run --stages evaluation first")

    def outcomes(arm: str, part: str) -> ArmOutcomes:
        return gathered({seed: result[part] for seed, result in runs[arm].items()})

    return {
        "split": split,
        "arms": {arm: _levels(outcomes(arm, "outcomes")) for arm in runs},
        "differences": [
            number
            for ours, theirs, mode in DIFFERENCES
            if {ours, theirs} <= runs.keys()
            for number in _differences(runs[ours], runs[theirs], mode, f"{ours} - {theirs}")
        ],
        "paths": {arm: _paths(outcomes(arm, "paths")) for arm in runs if arm != "direct"},
        "depth": {
            arm: {
                name: _depth(gathered({seed: result["depth"][name] for seed, result in by_seed.items()}))
                for name in next(iter(by_seed.values()))["depth"]
            }
            for arm, by_seed in runs.items()
            if all("depth" in result for result in by_seed.values())
        },
    }


def _levels(outcomes: ArmOutcomes) -> dict[str, Any]:
    parts: dict[str, Sequence[str]] = {**GROUPS, **{task: (task,) for task in sorted(set(outcomes.tasks.tolist()))}}
    columns = ("never", "always", "right")
    numbers = {
        part: {column: outcomes.estimate(outcomes.columns[column], tasks) for column in columns}
        for part, tasks in parts.items()
    }
    return {"seeds": outcomes.seeds, **numbers}


def _differences(
    ours: Mapping[int, Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]], mode: str, name: str
) -> list[dict[str, Any]]:
    """One arm minus another, per group of tasks, over the seeds that both have."""
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return []
    one, other = (gathered({seed: results[seed]["outcomes"] for seed in seeds}) for results in (ours, theirs))
    if one.ids != other.ids:
        raise ValueError(f"{name}: the arms were not asked the same questions; remove their evaluations")
    gain = one.columns[mode] - other.columns[mode]
    return [
        {"difference": name, "mode": mode, "tasks": group, "seeds": seeds, **one.estimate(gain, tasks)}
        for group, tasks in GROUPS.items()
    ]


def _paths(outcomes: ArmOutcomes) -> dict[str, Any]:
    matched = np.mean([outcomes.columns[path] for path in MATCHED], axis=0)
    parts: dict[str, Sequence[str]] = {"both": PICTURE_TARGETS, **{task: (task,) for task in PICTURE_TARGETS}}
    return {
        part: {
            "R@1": {path: outcomes.estimate(outcomes.columns[path], tasks) for path in (*MATCHED, *MIXED)},
            "minus matched": {path: outcomes.estimate(outcomes.columns[path] - matched, tasks) for path in MIXED},
        }
        for part, tasks in parts.items()
    }


def _depth(outcomes: ArmOutcomes) -> dict[str, Any]:
    rounds = sorted(outcomes.columns)
    gains = {
        f"{after} - {before}": outcomes.columns[after] - outcomes.columns[before]
        for before, after in zip(rounds[:-1], rounds[1:], strict=True)
    }
    return {
        "R@1": {name: outcomes.estimate(outcomes.columns[name], NEIGHBOURS) for name in rounds},
        "gains": {name: outcomes.estimate(gain, NEIGHBOURS) for name, gain in gains.items()},
    }
