"""Read Atlas's tables as retrieval tasks, and evaluate a model on them beside trivial baselines."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmemb_r1.content import given_parts
from mmemb_r1.evaluation.encoders import DOCUMENT, Explains, embed_all, encoder_of
from mmemb_r1.evaluation.metrics import ranks, unit_rows
from mmemb_r1.evaluation.run_folder import Results
from mmemb_r1.evaluation.runner import run_evaluation
from mmemb_r1.evaluation.scoring import TIE_TOLERANCE
from mmemb_r1.evaluation.settings import Settings
from mmemb_r1.evaluation.tasks import RetrievalTask, rows_by

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


@dataclass(frozen=True)
class CandidateSet:
    """The answers that compete: candidate id -> row of `embeddings` `(C, D)`."""

    rows: dict[str, int]
    embeddings: npt.NDArray[np.float32]

    def ranks(self, queries: npt.NDArray[np.float32], target_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Rank `(Q,)` of each query's target, for queries `(Q, D)`."""
        scores = unit_rows("queries", queries) @ unit_rows("candidates", self.embeddings).T  # (Q, C)
        return ranks(scores, np.arange(len(self.rows)) == self.places(target_ids)[:, None], tolerance=TIE_TOLERANCE)

    def places(self, target_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Row `(Q,)` of each target among the candidates."""
        return places(self.rows, target_ids)


def embed_candidates(
    model: Explains, candidates: Dataset, names: set[str], batch_size: int = 64, reasoning: str = "never"
) -> dict[str, CandidateSet]:
    """
    Embed the candidates of the named sets, directly by default.

    Raises:
        ValueError: if a set is empty or holds a candidate twice.
    """
    settings = Settings(modes=("never",), document_reasoning=reasoning, batch_size=batch_size)
    encoder, sets = encoder_of(model, settings), {}
    for name, answers in candidate_inputs(candidates, names).items():
        embedded = embed_all(
            encoder, answers.inputs, side=DOCUMENT, reasoning=reasoning, batch_size=batch_size, ids=list(answers.rows)
        )
        sets[name] = CandidateSet(answers.rows, embedded.embeddings)
    return sets


def evaluate(
    model: Explains,
    pairs: Dataset,
    candidates: Dataset,
    *,
    modes: Sequence[str] = ("never", "always"),
    batch_size: int = 64,
    train_pairs: Dataset | None = None,
    progress: bool = True,
    config: Mapping[str, Any] | None = None,
    output: str | os.PathLike[str] | None = None,
    checkpoint: str | None = None,
    rationales: bool = False,
) -> Results:
    """
    Rank the candidates for each query, task by task and reasoning mode by reasoning mode.

    Candidates are embedded once and directly (`reasoning="never"`); `modes` say how the queries think.

    Args:
        model: an [`MMEmbR1`], anything with its `explain`, or any sentence-transformers model.
        pairs: queries with the columns of [`atlas_tasks`].
        candidates: answers with the columns of [`atlas_tasks`].
        modes: reasoning modes of the queries; defaults to never and always.
        batch_size: defaults to 64.
        train_pairs: pairs whose most frequent answer per task gives the majority baseline; left out when `None`.
        progress: whether to show bars; defaults to `True`.
        config: what else to note about this run, say the model's name and the seed.
        output: the folder of a run that goes on after a kill, see [`run_evaluation`]. Default: nothing is written.
        checkpoint: what names the weights of a model with an `explain` of its own, see [`run_evaluation`].
        rationales: whether the rows there hold what was thought; defaults to `False`.

    Returns:
        As [`run_evaluation`]; `config` also says how many `candidates` each set has, tasks also have a `complexity`,
        and where they apply `majority` (hit@1) and `no_image` (hit@1 per mode).

    Raises:
        ValueError: if there are no pairs or modes, or a table is not what it has to be.
    """
    if len(pairs) == 0 or not modes:
        raise ValueError(
            f"there is nothing to evaluate: {len(pairs)} pairs, modes {list(modes)}; give at least one of each"
        )
    settings = Settings(modes=tuple(modes), batch_size=batch_size, no_image=True, rationales=rationales)
    tasks = atlas_tasks(pairs, candidates)
    noted = {"candidates": set_sizes(candidates, pairs["candidate_set"]), **(config or {})}
    extras = majority(train_pairs, pairs)
    return run_evaluation(
        model,
        tasks,
        settings,
        output=output,
        checkpoint=checkpoint,
        extras=extras,
        config=noted,
        progress=progress,
    )
