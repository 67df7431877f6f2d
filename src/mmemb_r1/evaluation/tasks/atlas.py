"""Atlas's tables as retrieval tasks, and the baseline that says what a score on them is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmemb_r1._inputs import given_parts
from mmemb_r1.evaluation.tasks.retrieval import RetrievalTask, rows_by

if TYPE_CHECKING:
    from datasets import Dataset

METRIC = "hit@1"
COLUMNS = ("task", "complexity", "query", "candidate_set", "target_id")
OPTIONAL = ("pair_id", "entity")


def atlas_tasks(pairs: Dataset, candidates: Dataset, data: Mapping[str, Any] | None = None) -> list[RetrievalTask]:
    """
    A split of pairs as tasks, sorted by name, in the group of their complexity.

    Args:
        pairs: queries with the columns `task`, `complexity`, `query`, `candidate_set` and `target_id`; `pair_id`
            (default: the number of the row) and `entity`, what each is about, where they are there.
        candidates: answers with the columns `candidate_set`, `candidate_id` and `input`.
        data: says which tables these are, see [`RetrievalTask`]. Default: their content is looked into.

    Raises:
        ValueError: if a set has no candidates, or one twice; a target is not among its candidates; a task has several
            complexities or sets; or a pair id stands twice in a task.
    """
    kept = [name for name in (*COLUMNS, *OPTIONAL) if name in pairs.column_names]
    pairs = pairs.select_columns(kept)  # pictures of the other columns would be decoded for nothing
    sets = candidate_inputs(candidates, set(pairs["candidate_set"]))
    tasks = []
    for name, rows in sorted(rows_by(pairs["task"]).items()):
        own = pairs.select(rows)
        complexities, names = set(own["complexity"]), set(own["candidate_set"])
        if len(complexities) > 1 or len(names) > 1:
            raise ValueError(
                f"the pairs of a task have the complexities {sorted(complexities)} and the candidate sets "
                f"{sorted(names)}; a task has one of each"
            )
        answers, targets = sets[names.pop()], list(own["target_id"])
        places(answers.rows, targets)
        tasks.append(
            RetrievalTask(
                name=name,
                metric=METRIC,
                groups={"complexity": complexities.pop()},
                query_ids=list(own["pair_id"]) if "pair_id" in kept else [str(row) for row in rows],
                queries=[given_parts(value) for value in own["query"]],
                candidate_ids=list(answers.rows),
                candidates=answers.inputs,
                relevance=[{target: 1.0} for target in targets],
                clusters=list(own["entity"]) if "entity" in kept else None,
                data=data or {},
            )
        )
    return tasks


@dataclass(frozen=True)
class CandidateInputs:
    """The answers that compete: candidate id -> row of `inputs`."""

    rows: dict[str, int]
    inputs: list[Any]


def candidate_inputs(candidates: Dataset, names: set[str]) -> dict[str, CandidateInputs]:
    """
    The candidates of the named sets, sorted by the name of the set.

    Raises:
        ValueError: if a set is empty or holds a candidate twice.
    """
    rows_of_set = rows_by(candidates["candidate_set"])
    if missing := names - set(rows_of_set):
        raise ValueError(
            f"there are no candidates for the set {min(missing)!r}; known: {', '.join(sorted(rows_of_set))}"
        )
    sets = {}
    for name in sorted(names):
        table = candidates.select(rows_of_set[name])
        rows = {candidate: row for row, candidate in enumerate(table["candidate_id"])}
        if len(rows) < len(table):
            raise ValueError(f"the candidate set {name!r} holds a candidate twice")
        sets[name] = CandidateInputs(rows, [given_parts(value) for value in table["input"]])
    return sets


def places(rows: Mapping[str, int], target_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """
    Row `(Q,)` of each target, from candidate id -> row.

    Raises:
        ValueError: if a target is no candidate.
    """
    missing = [target for target in target_ids if target not in rows]
    if missing:
        raise ValueError(f"the target {missing[0]!r} is not among the {len(rows)} candidates of its set")
    return np.array([rows[target] for target in target_ids])


def set_sizes(candidates: Dataset, names: Collection[str]) -> dict[str, int]:
    """How many candidates each of the named sets has."""
    sizes = Counter(candidates["candidate_set"])
    return {name: sizes[name] for name in sorted(set(names))}


def majority(train_pairs: Dataset | None, pairs: Dataset) -> dict[str, dict[str, float]]:
    """Task -> `{"majority": hit@1}` of always giving the task's most frequent answer among `train_pairs`."""
    if train_pairs is None:
        return {}
    from mmemb_r1.atlas import majority_baseline

    return {task: {"majority": value} for task, value in majority_baseline(train_pairs, pairs).items()}
