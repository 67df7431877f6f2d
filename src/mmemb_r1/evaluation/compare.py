"""Compare two evaluations of the same queries."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmemb_r1.evaluation.report.text import Head, as_points, lined_table, points_between
from mmemb_r1.evaluation.run_folder import RESULTS_FILE, Results, load_results, read_query_rows, rows_path
from mmemb_r1.evaluation.statistics import NUM_PAIRED_SAMPLES as NUM_SAMPLES
from mmemb_r1.evaluation.statistics import Floats, holm, paired_difference
from mmemb_r1.evaluation.tasks import members_of, task_names
from mmemb_r1.progress import progress_bar

if TYPE_CHECKING:
    from rich.table import Table


FORMAT = 1


@dataclass(frozen=True)
class Run:
    """Holds an evaluation: its folder, and what its `results.json` holds."""

    folder: Path
    results: Results

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Run:
        """Load a folder; an error if it holds no finished evaluation."""
        path = Path(folder) / RESULTS_FILE
        if not path.is_file():
            raise ValueError(
                f"{folder} holds no {RESULTS_FILE}; name a folder that `mmemb-r1 evaluate --output` wrote, and if "
                "that was interrupted, run it again: what is done is not run again"
            )
        return cls(Path(folder), load_results(path))

    @property
    def modes(self) -> list[str]:
        return list(self.results["config"]["modes"])


PairedRows = tuple[Floats, Floats, list[str]]  # scores `(N,)` of A and of B, and clusters of the queries


def compare_runs(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    mode_a: str | None = None,
    mode_b: str | None = None,
    tasks: Sequence[str] | None = None,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """
    Compare the runs A and B: what B gains per task, per group of tasks and over all, every task with the same weight.

    Args:
        first, second: folders of A and B that `mmemb-r1 evaluate --output` wrote; the same one to compare its modes.
        mode_a, mode_b: reasoning modes that are compared; one alone stands for both. Default: every mode that both
            have, each with itself.
        tasks: names of tasks or of groups. Default: all. A and B have to have the same of these.
        num_samples, seed: see [`paired_difference`].
        progress: whether to show a bar on standard error.

    Returns:
        A dict that JSON can hold: `format`, `a` and `b` (the runs' `config`), `num_samples`, `seed`, and
        `comparisons`, a list with `mode_a`, `mode_b`, `tasks` (name -> `metric`, `groups`, what [`Difference`] holds,
        and `p_holm`, corrected over the tasks) and `summary` (group -> `tasks` and what [`Difference`] holds).

    Raises:
        ValueError: if a folder holds no evaluation, or the runs differ in tasks, data, queries or modes; it says how.
    """
    a, b = Run.load(first), Run.load(second)
    pairs = _mode_pairs(a, b, mode_a, mode_b)
    names = _common_tasks(a, b, tasks)
    _check_data(a, b, names)
    facts = {name: {key: a.results["tasks"][name][key] for key in ("metric", "groups")} for name in names}
    members = members_of({name: fact["groups"] for name, fact in facts.items()})
    comparisons = []
    with progress_bar(progress) as bar:
        step = bar.add_task("drawing", total=len(pairs) * (len(names) + len(members)))
        for of_a, of_b in pairs:
            rows = {}
            for name in names:
                both = (read_query_rows(rows_path(run.folder, name, mode)) for run, mode in ((a, of_a), (b, of_b)))
                rows[name] = _paired_rows(name, *both)
            entries: dict[str, dict[str, Any]] = {}
            for name in names:
                entries[name] = {**facts[name], **_difference(rows, [name], num_samples, seed)}
                bar.advance(step)
            for entry, p in zip(entries.values(), holm([entry["p"] for entry in entries.values()]), strict=True):
                entry["p_holm"] = p
            summary = {}
            for group, inside in members.items():
                summary[group] = {"tasks": len(inside), **_difference(rows, inside, num_samples, seed)}
                bar.advance(step)
            comparisons.append({"mode_a": of_a, "mode_b": of_b, "tasks": entries, "summary": summary})
    return {
        "format": FORMAT,
        "a": a.results["config"],
        "b": b.results["config"],
        "num_samples": num_samples,
        "seed": seed,
        "comparisons": comparisons,
    }


def _difference(rows: Mapping[str, PairedRows], names: Sequence[str], num_samples: int, seed: int) -> dict[str, Any]:
    """Compare over some tasks, each with the same weight."""
    a, b, clusters = zip(*(rows[name] for name in names), strict=True)
    found = paired_difference(
        np.concatenate(a),
        np.concatenate(b),
        [*chain.from_iterable(clusters)],
        [name for name, of_task in zip(names, clusters, strict=True) for _ in of_task],
        num_samples=num_samples,
        seed=seed,
    )
    return {**found._asdict(), "difference": found.difference._asdict()}


def _mode_pairs(a: Run, b: Run, mode_a: str | None, mode_b: str | None) -> list[tuple[str, str]]:
    if mode_a is None and mode_b is None:
        common = [mode for mode in a.modes if mode in b.modes]
        if not common:
            raise ValueError(
                f"{a.folder} has the modes {', '.join(a.modes)} and {b.folder} {', '.join(b.modes)}, none in common; "
                "name one of each (--mode-a, --mode-b)"
            )
        return [(mode, mode) for mode in common]
    pair = (mode_a or mode_b or "", mode_b or mode_a or "")
    for run, mode in zip((a, b), pair, strict=True):
        if mode not in run.modes:
            raise ValueError(f"{run.folder} was not evaluated in the mode {mode!r}; it has {', '.join(run.modes)}")
    return [pair]


def _common_tasks(a: Run, b: Run, wanted: Sequence[str] | None) -> list[str]:
    chosen = []
    for run in (a, b):
        groups = {name: entry["groups"] for name, entry in run.results["tasks"].items()}
        try:
            chosen.append(list(groups) if wanted is None else task_names(groups, wanted))
        except ValueError as error:
            raise ValueError(f"{run.folder}: {error}") from error
    of_a, of_b = chosen
    for one, other, names, others in ((a, b, of_a, of_b), (b, a, of_b, of_a)):
        if alone := sorted(set(names) - set(others)):
            shown = ", ".join(alone[:3]) + (" ..." if len(alone) > 3 else "")
            raise ValueError(
                f"{one.folder} has {len(alone)} tasks that {other.folder} lacks: {shown}; name the tasks to compare "
                "(--tasks), or evaluate both on the same"
            )
    return chosen[0]


def _check_data(a: Run, b: Run, names: Sequence[str]) -> None:
    """Refuse runs that did not ask the same."""
    for name in names:
        ours, theirs = (run.results["tasks"][name].get("data", {}) for run in (a, b))
        for run, data in ((a, ours), (b, theirs)):
            if "digest" not in data:
                raise ValueError(
                    f"{run.folder} does not tell what data its task {name} is of; an older version wrote it, so "
                    "evaluate again"
                )
        if ours["digest"] != theirs["digest"]:
            differing = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
            shown = "; ".join(f"{key} is {ours.get(key)!r:.60} and {theirs.get(key)!r:.60}" for key in differing)
            raise ValueError(
                f"{name} is not the same task in {a.folder} and {b.folder}: {shown}. Queries, candidates and what is "
                "right have to be the same; evaluate both on the same data"
            )


def _paired_rows(task: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> PairedRows:
    """Pair the rows of a task in two runs, in the order of A's queries."""
    place = {query: row for row, query in enumerate(b["query_id"])}
    if different := sorted(set(a["query_id"]) ^ set(place)):
        raise ValueError(
            f"{task}: {len(different)} queries are in one of the runs only, say {different[0]!r}; evaluate both on "
            "the same data"
        )
    order = [place[query] for query in a["query_id"]]
    if (a["cluster"] != b["cluster"][order]).any():
        row = int(np.argmax(a["cluster"] != b["cluster"][order]))
        raise ValueError(
            f"{task}: the query {a['query_id'][row]!r} is of the cluster {a['cluster'][row]!r} in one run and of "
            f"{b['cluster'][order][row]!r} in the other; evaluate both on the same data"
        )
    return a["score"], b["score"][order], a["cluster"].tolist()


ALPHA = 0.05  # p values below it are called significant


def paired_table(comparison: Mapping[str, Any]) -> Table:
    """Lay out one of the `comparisons` as a `rich` table: both scores, what B gains in points, and p values."""
    modes = comparison["mode_a"], comparison["mode_b"]
    title = f"B - A, {modes[0]}" if modes[0] == modes[1] else f"{modes[1]} of B - {modes[0]} of A"
    names = ("n", "A", "B", "B - A", "95 %", "B > A in", "p", "p (Holm)")
    return lined_table(title, [Head(name, main=name == "B - A") for name in names], dict(comparison), _cells)


def _cells(entry: Mapping[str, Any]) -> list[str]:
    difference = entry["difference"]
    return [
        str(entry["n"]),
        f"{entry['a']:.3f}",
        f"{entry['b']:.3f}",
        as_points(difference["mean"]),
        points_between(difference),
        f"{entry['above']:.1%}",
        f"{entry['p']:.4f}",
        f"{entry['p_holm']:.4f}" if "p_holm" in entry else "",
    ]


def remark(comparison: Mapping[str, Any]) -> str:
    """
    Say how many tasks differ, and what that is worth.

    >>> one = {"p": 0.01, "p_holm": 0.02}
    >>> remark({"tasks": {"fact": one, "flag": {"p": 0.04, "p_holm": 0.08}}})
    '2 of 2 tasks have p < 0.05, of which chance alone would give 0.1; 1 after the correction for that (Holm).'
    """
    tasks = comparison["tasks"].values()
    raw, corrected = (sum(entry[key] < ALPHA for entry in tasks) for key in ("p", "p_holm"))
    return (
        f"{raw} of {len(tasks)} tasks have p < {ALPHA}, of which chance alone would give {ALPHA * len(tasks):.1f}; "
        f"{corrected} after the correction for that (Holm)."
    )
