"""Measure a model on a benchmark's tables: how well, how often it thought, and at what price."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from rich.progress import Progress

from mmemb_r1._inputs import given_parts
from mmemb_r1.evaluation.metrics import cosine_scores, hit_at_k, mrr, ranks
from mmemb_r1.evaluation.results import Results

if TYPE_CHECKING:
    from datasets import Dataset

TIE_TOLERANCE = 1e-6  # rounding of a float32 product of unit vectors
COLUMNS = ["task", "complexity", "query", "candidate_set", "target_id"]
PACKAGES = ("mmemb-r1", "sentence-transformers", "torch", "transformers")


class Explains(Protocol):
    """What is asked of a model: [`MMEmbR1.explain`]."""

    def explain(self, inputs: list[Any], *, reasoning: str, batch_size: int, show_progress_bar: bool) -> Any: ...


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
) -> Results:
    """Rank the candidates for each query, task by task and reasoning mode by reasoning mode.

    Candidates are embedded once and directly (`reasoning="never"`); `modes` say how the queries think.

    Args:
        model: anything with the `explain` of [`MMEmbR1`].
        pairs: queries with the columns `task`, `complexity`, `query`, `candidate_set` and `target_id`.
        candidates: answers with the columns `candidate_set`, `candidate_id` and `input`.
        modes: reasoning modes of the queries; defaults to never and always.
        batch_size: defaults to 64.
        train_pairs: pairs whose most frequent answer per task gives the majority baseline; left out when `None`.
        progress: whether to show a progress bar; defaults to `True`.
        config: what else to note about this run, say the model's name and the seed.

    Returns:
        A dict that JSON can hold: `config`; `tasks`, per task `complexity`, `n`, `candidates`, `modes` (hit@1, mrr,
        invocation_ratio, mean_reasoning_tokens, seconds_per_query), and where they apply `majority` (hit@1) and
        `no_image` (hit@1 per mode); and `summary`, the means over the tasks of each complexity and over all.

    Raises:
        ValueError: if there are no pairs or modes, or a target is not among its candidates.
    """
    if len(pairs) == 0 or not modes:
        raise ValueError(
            f"there is nothing to evaluate: {len(pairs)} pairs, modes {list(modes)}; give at least one of each"
        )
    pairs = pairs.select_columns(COLUMNS)  # pictures of the other columns would be decoded for nothing
    rows_of_task = defaultdict(list)
    for row, task in enumerate(pairs["task"]):
        rows_of_task[task].append(row)
    used = set(pairs["candidate_set"])
    sets = embed_candidates(model, candidates, used, batch_size)
    majority = _majority(train_pairs, pairs)

    tasks = {}
    with Progress(disable=not progress, transient=True) as bar:
        step = bar.add_task("evaluating", total=len(pairs))
        for task, rows in sorted(rows_of_task.items()):
            bar.update(step, description=task)
            tasks[task] = _evaluate_task(model, pairs.select(rows), sets, modes, batch_size)
            if task in majority:
                tasks[task]["majority"] = majority[task]
            bar.advance(step, len(rows))
    return {
        "config": {
            "modes": list(modes),
            "batch_size": batch_size,
            "queries": len(pairs),
            "candidates": {name: len(sets[name].rows) for name in sorted(used)},
            "versions": {package: version(package) for package in PACKAGES},
            **(config or {}),
        },
        "tasks": tasks,
        "summary": summarise(tasks),
    }


@dataclass(frozen=True)
class _Embedded:
    """Embeddings `(N, D)`, whether each input reasoned `(N,)`, its rationale's tokens `(N,)`, and the time for all."""

    embeddings: npt.NDArray[np.float32]
    reasoned: npt.NDArray[np.bool_]
    tokens: npt.NDArray[np.int64]
    seconds: float


@dataclass(frozen=True)
class CandidateSet:
    """The answers that compete: candidate id -> row of `embeddings` `(C, D)`."""

    rows: dict[str, int]
    embeddings: npt.NDArray[np.float32]

    def ranks(self, queries: npt.NDArray[np.float32], target_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Rank `(Q,)` of each query's target, for queries `(Q, D)`."""
        return ranks(cosine_scores(queries, self.embeddings), self.places(target_ids), tolerance=TIE_TOLERANCE)

    def places(self, target_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Row `(Q,)` of each target among the candidates."""
        missing = [target for target in target_ids if target not in self.rows]
        if missing:
            raise ValueError(f"the target {missing[0]!r} is not among the {len(self.rows)} candidates of its set")
        return np.array([self.rows[target] for target in target_ids])


def _embed(model: Explains, inputs: list[Any], reasoning: str, batch_size: int) -> _Embedded:
    start = time.perf_counter()
    rows = model.explain(inputs, reasoning=reasoning, batch_size=batch_size, show_progress_bar=False)
    seconds = time.perf_counter() - start
    if len(rows) != len(inputs):
        raise ValueError(f"the model gave {len(rows)} embeddings for {len(inputs)} inputs")
    return _Embedded(
        embeddings=np.stack([np.asarray(row["embedding"], dtype=np.float32) for row in rows]),
        reasoned=np.array([bool(row["reasoned"]) for row in rows]),
        tokens=np.array([int(row["num_reasoning_tokens"]) for row in rows]),
        seconds=seconds,
    )


def embed_candidates(
    model: Explains, candidates: Dataset, names: set[str], batch_size: int = 64, reasoning: str = "never"
) -> dict[str, CandidateSet]:
    """Embed the candidates of the named sets, directly by default.

    Raises:
        ValueError: if a set is empty or holds a candidate twice.
    """
    rows_of_set = defaultdict(list)
    for row, name in enumerate(candidates["candidate_set"]):
        rows_of_set[name].append(row)
    if missing := names - set(rows_of_set):
        raise ValueError(
            f"there are no candidates for the set {min(missing)!r}; known: {', '.join(sorted(rows_of_set))}"
        )
    sets = {}
    for name in sorted(names):
        table = candidates.select(rows_of_set[name])
        ids = list(table["candidate_id"])
        if len(set(ids)) < len(ids):
            raise ValueError(f"the candidate set {name!r} holds a candidate twice")
        embedded = _embed(model, [given_parts(value) for value in table["input"]], reasoning, batch_size)
        sets[name] = CandidateSet({candidate: row for row, candidate in enumerate(ids)}, embedded.embeddings)
    return sets


def _evaluate_task(
    model: Explains, pairs: Dataset, sets: Mapping[str, CandidateSet], modes: Sequence[str], batch_size: int
) -> dict[str, Any]:
    complexities, names = set(pairs["complexity"]), set(pairs["candidate_set"])
    if len(complexities) > 1 or len(names) > 1:
        raise ValueError(
            f"the pairs of a task have the complexities {sorted(complexities)} and the candidate sets {sorted(names)};"
            " a task has one of each"
        )
    answers, targets = sets[names.pop()], list(pairs["target_id"])
    queries = [given_parts(value) for value in pairs["query"]]
    result: dict[str, Any] = {
        "complexity": complexities.pop(),
        "n": len(queries),
        "candidates": len(answers.rows),
        "modes": {},
    }
    for mode in modes:
        embedded = _embed(model, queries, mode, batch_size)
        result["modes"][mode] = _numbers(embedded, answers.ranks(embedded.embeddings, targets))
    blind = [{key: part for key, part in query.items() if key != "image"} for query in queries]
    if blind != queries and all(query.get("text") for query in blind):
        result["no_image"] = {
            mode: hit_at_k(answers.ranks(_embed_distinct(model, blind, mode, batch_size), targets))
            for mode in modes
            if mode != "auto"
        }
    return result


def _numbers(embedded: _Embedded, place: npt.NDArray[np.int64]) -> dict[str, float]:
    return {
        "hit@1": hit_at_k(place),
        "mrr": mrr(place),
        "invocation_ratio": float(embedded.reasoned.mean()),
        "mean_reasoning_tokens": float(embedded.tokens.mean()),
        "seconds_per_query": embedded.seconds / len(place),
    }


def _embed_distinct(
    model: Explains, queries: list[dict[str, Any]], mode: str, batch_size: int
) -> npt.NDArray[np.float32]:
    """Embeddings `(Q, D)` of queries many of which are equal, as they are without their pictures: each once."""
    keys = [json.dumps(query, sort_keys=True) for query in queries]
    distinct = dict(zip(keys, queries, strict=True))
    row_of = {key: row for row, key in enumerate(distinct)}
    return _embed(model, list(distinct.values()), mode, batch_size).embeddings[[row_of[key] for key in keys]]


def _majority(train_pairs: Dataset | None, pairs: Dataset) -> dict[str, float]:
    if train_pairs is None:
        return {}
    from mmemb_r1.atlas import majority_baseline

    return majority_baseline(train_pairs, pairs)


def summarise(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Unweighted means over the tasks of each complexity, and over all of them under `all`."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for result in tasks.values():
        groups[result["complexity"]].append(result)
    groups["all"] = list(tasks.values())
    summary = {}
    for name, results in groups.items():
        modes = {
            mode: {key: float(np.mean([result["modes"][mode][key] for result in results])) for key in numbers}
            for mode, numbers in results[0]["modes"].items()
        }
        summary[name] = {"tasks": len(results), "n": sum(result["n"] for result in results), "modes": modes}
        if all("majority" in result for result in results):
            summary[name]["majority"] = float(np.mean([result["majority"] for result in results]))
    return summary
