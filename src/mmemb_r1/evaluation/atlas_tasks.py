"""Read Atlas's tables as retrieval tasks, beside the baseline of the most frequent answer."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmemb_r1.content import given_parts
from mmemb_r1.evaluation.encoders import DOCUMENT, Explains, embed_all, encoder_of
from mmemb_r1.evaluation.metrics import ranks, unit_rows
from mmemb_r1.evaluation.scoring import TIE_TOLERANCE
from mmemb_r1.evaluation.settings import Settings
from mmemb_r1.evaluation.tasks import RetrievalTask, TaskSource, rows_by, task_names

if TYPE_CHECKING:
    from datasets import Dataset


METRIC = "hit@1"
COLUMNS = ("task", "complexity", "query", "candidate_set", "target_id")
OPTIONAL = ("pair_id", "entity")


def read_atlas_tasks(
    folder: str | os.PathLike[str], *, names: Sequence[str] | None = None, split: str = "test"
) -> TaskSource:
    """
    Read the tasks of a split (`"policy"`, `"validation"` or `"test"`) of an Atlas that `mmemb-r1 atlas build` wrote;
    `names` are of tasks or groups, all by default.
    """
    from mmemb_r1.atlas import load_atlas

    atlas = load_atlas(folder)
    pairs = atlas.pairs[split]
    if names is not None:
        groups = {task: {"complexity": group} for task, group in zip(pairs["task"], pairs["complexity"], strict=True)}
        wanted = set(task_names(groups, names))
        pairs = pairs.select([row for row, task in enumerate(pairs["task"]) if task in wanted])
    data = {"dataset": "Atlas", "split": split, "content": atlas.manifest["content_hash"]}
    tasks = atlas_tasks(pairs, atlas.candidates, data, train_pairs=atlas.pairs["train"])
    sizes = Counter(atlas.candidates["candidate_set"])
    sizes_of_used = {name: sizes[name] for name in sorted(set(pairs["candidate_set"]))}
    return TaskSource(tasks, {"dataset": "Atlas", "split": split, "candidates": sizes_of_used})


def atlas_tasks(
    pairs: Dataset,
    candidates: Dataset,
    data: Mapping[str, Any] | None = None,
    *,
    train_pairs: Dataset | None = None,
) -> list[RetrievalTask]:
    """
    Turn a split of pairs into tasks, sorted by name, in the group of their complexity.

    Args:
        pairs: queries with the columns `task`, `complexity`, `query`, `candidate_set` and `target_id`; `pair_id`
            (default: the number of the row) and `entity`, what each is about, where they are there.
        candidates: answers with the columns `candidate_set`, `candidate_id` and `input`.
        data: says which tables these are, see [`RetrievalTask`]. Default: their content is looked into.
        train_pairs: pairs whose most frequent answers, per task and per query text, give the baselines `majority` and
            `text_alone`, the latter where queries have pictures. Default: no baselines.

    Raises:
        ValueError: if a set has no candidates, or one twice; a target is none of them; a task has several complexities
            or sets; or a pair id stands twice in a task.
    """
    kept = [name for name in (*COLUMNS, *OPTIONAL) if name in pairs.column_names]
    pairs = pairs.select_columns(kept)  # pictures of the other columns would be decoded for nothing
    sets = candidate_inputs(candidates, set(pairs["candidate_set"]))
    inputs = {name: list(answers.values()) for name, answers in sets.items()}  # one list for all tasks of a set
    baselines: dict[str, dict[str, float]] = {}
    if train_pairs is not None:
        from mmemb_r1.atlas import majority_baseline, no_image_baseline

        baselines["majority"] = majority_baseline(train_pairs, pairs)
        baselines["text_alone"] = no_image_baseline(train_pairs, pairs)
    tasks = []
    for name, rows in sorted(rows_by(pairs["task"]).items()):
        own = pairs.select(rows)
        complexities, names = set(own["complexity"]), set(own["candidate_set"])
        if len(complexities) > 1 or len(names) > 1:
            raise ValueError(
                f"the pairs of a task have the complexities {sorted(complexities)} and the candidate sets "
                f"{sorted(names)}; a task has one of each"
            )
        candidate_set, targets = names.pop(), list(own["target_id"])
        answers = sets[candidate_set]
        if missing := [target for target in targets if target not in answers]:
            raise ValueError(f"the target {missing[0]!r} is not among the {len(answers)} candidates of its set")
        tasks.append(
            RetrievalTask(
                name=name,
                metric=METRIC,
                groups={"complexity": complexities.pop()},
                query_ids=list(own["pair_id"]) if "pair_id" in kept else [str(row) for row in rows],
                queries=[given_parts(value) for value in own["query"]],
                candidate_ids=list(answers),
                candidates=inputs[candidate_set],
                relevance=[{target: 1.0} for target in targets],
                clusters=list(own["entity"]) if "entity" in kept else None,
                data=data or {},
                baselines={kind: of_task[name] for kind, of_task in baselines.items() if name in of_task},
            )
        )
    return tasks


def candidate_inputs(candidates: Dataset, names: set[str]) -> dict[str, dict[str, Any]]:
    """Look up the candidates of the named sets: set -> candidate id -> input; refuse an empty set, or an id twice."""
    rows_of_set = rows_by(candidates["candidate_set"])
    if missing := names - set(rows_of_set):
        raise ValueError(
            f"there are no candidates for the set {min(missing)!r}; known: {', '.join(sorted(rows_of_set))}"
        )
    sets = {}
    for name in sorted(names):
        table = candidates.select(rows_of_set[name])
        sets[name] = dict(zip(table["candidate_id"], map(given_parts, table["input"]), strict=True))
        if len(sets[name]) < len(table):
            raise ValueError(f"the candidate set {name!r} holds a candidate twice")
    return sets


@dataclass(frozen=True)
class CandidateSet:
    """Holds the vectors of answers that compete: candidate id -> row of `embeddings` `(C, D)`."""

    rows: dict[str, int]
    embeddings: npt.NDArray[np.float32]

    def ranks(self, queries: npt.NDArray[np.float32], target_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Rank each query's target, for queries `(Q, D)`: `(Q,)`."""
        scores = unit_rows("queries", queries) @ unit_rows("candidates", self.embeddings).T  # (Q, C)
        return ranks(scores, np.arange(len(self.rows)) == self.places(target_ids)[:, None], tolerance=TIE_TOLERANCE)

    def places(self, target_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Look up the row `(Q,)` of each target among the candidates."""
        return np.array([self.rows[target] for target in target_ids])


def embed_candidates(
    model: Explains, candidates: Dataset, names: set[str], batch_size: int = 64, reasoning: str = "never"
) -> dict[str, CandidateSet]:
    """Embed the candidates of the named sets, directly by default."""
    settings = Settings(modes=("never",), document_reasoning=reasoning, batch_size=batch_size)
    encoder, sets = encoder_of(model, settings), {}
    for name, answers in candidate_inputs(candidates, names).items():
        ids, inputs = list(answers), list(answers.values())
        embedded = embed_all(encoder, inputs, side=DOCUMENT, reasoning=reasoning, batch_size=batch_size, ids=ids)
        sets[name] = CandidateSet({one: row for row, one in enumerate(ids)}, embedded.embeddings)
    return sets
