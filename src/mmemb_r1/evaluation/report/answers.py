"""A run's rows of both fixed modes and the gate's decisions, joined query by query for `adaptivity`."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.invocation import Answers, choice_scores
from mmemb_r1.evaluation.run_folder import Columns, Results, read_query_rows, rows_path

FIXED = ("never", "always")


@dataclass(frozen=True)
class RunAnswers:
    """
    All queries of a run.

    Args:
        answers: of N queries.
        thinks: `(N,)` for which of them `auto` thought. `None` if it was not run.
        strays: for how many of them the score of `auto` is not that of the fixed mode which it chose. More than a few
            means that it thought several times, or not with the options of `always`.
    """

    answers: Answers
    thinks: npt.NDArray[np.bool_] | None
    strays: int

    def of_tasks(self, names: set[str]) -> RunAnswers:
        """
        The queries of some tasks. `strays` stays that of the run.

        Raises:
            ValueError: if none of the tasks has queries.
        """
        where = np.isin(self.answers.task, sorted(names))
        return RunAnswers(self.answers.where(where), None if self.thinks is None else self.thinks[where], self.strays)


def read_answers(run: str | os.PathLike[str], results: Results) -> RunAnswers | None:
    """
    Read the rows of `never`, `always` and, where it was run, `auto`.

    Args:
        run: the run's folder.
        results: what its `results.json` holds.

    Returns:
        `None` if the run lacks one of the fixed modes: then nothing can be said of a choice between them.

    Raises:
        ValueError: if a file of rows is missing or damaged, or the modes are not of the same queries.
    """
    modes = results["config"]["modes"]
    if not set(FIXED) <= set(modes):
        return None
    columns: dict[str, list[npt.NDArray[Any]]] = defaultdict(list)
    for task, result in results["tasks"].items():
        rows = read_modes(run, task, [*FIXED, *(["auto"] if "auto" in modes else [])])
        for name, values in _columns(task, rows, result["modes"]).items():
            columns[name].append(values)
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    thinks, auto = joined.pop("thinks", None), joined.pop("auto", None)
    for name in ("gate_prob", "seconds_never", "seconds_always"):
        if np.isnan(joined[name]).any():  # there is no gate; all vectors came from a cache
            del joined[name]
    answers = Answers(**joined)
    strays = 0
    if thinks is not None and auto is not None:
        strays = int((~np.isclose(choice_scores(answers, thinks), auto)).sum())
    return RunAnswers(answers, thinks, strays)


def read_modes(run: str | os.PathLike[str], task: str, modes: Sequence[str]) -> dict[str, Columns]:
    """
    The rows of several modes of a task, all in the order of the first one's queries.

    Raises:
        ValueError: if a file is missing or damaged, or the modes are not of the same queries.
    """
    found = {mode: read_query_rows(rows_path(run, task, mode)) for mode in modes}
    ids = found[modes[0]]["query_id"]
    for mode in modes[1:]:
        place = {query: row for row, query in enumerate(found[mode]["query_id"])}
        if different := set(ids) ^ set(place):
            raise ValueError(
                f"{task}: {modes[0]} and {mode} are not of the same queries; {len(different)} are in one of them only,"
                f" say {min(different)!r}. Remove {rows_path(run, task, mode).with_suffix('.json')} and evaluate"
                " again: only what it held is measured again."
            )
        order = [place[query] for query in ids]
        found[mode] = {name: values[order] for name, values in found[mode].items()}
    return found


def _columns(task: str, rows: Mapping[str, Columns], numbers: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    never, always = (rows[mode] for mode in FIXED)
    queries = len(never["score"])
    columns = {
        "task": np.full(queries, task, object),
        "cluster": never["cluster"],
        "never": never["score"],
        "always": always["score"],
        "tokens": always["num_reasoning_tokens"],
        "gate_prob": never["gate_prob"],
        "alignment_never": never["alignment"],
        "alignment_always": always["alignment"],
    }
    columns |= {f"seconds_{mode}": np.full(queries, numbers[mode]["seconds_per_query"], float) for mode in FIXED}
    if "auto" in rows:
        columns |= {"auto": rows["auto"]["score"], "thinks": rows["auto"]["reasoned"]}
    return columns
