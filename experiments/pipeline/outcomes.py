"""Evaluate a model query by query: without and with a rationale, and with its gate's probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset

from experiments.atlas_workers.wording import facts, whole_words
from mmemb_r1 import MMEmbR1
from mmemb_r1.content import inputs_of
from mmemb_r1.evaluation.atlas_tasks import CandidateSet, embed_candidates
from mmemb_r1.evaluation.invocation import Answers
from mmemb_r1.objective import target_probability

OUTCOMES_FILE = "outcomes.parquet"
MODES = ("never", "always")
BATCH_SIZE = 128
PLAIN: dict[str, Any] = {"batch_size": BATCH_SIZE, "second_look": False}  # vectors of a mode, as it is
Columns = dict[str, list[Any]]  # a table: name -> a value per query


def measure_outcomes(checkpoint: Path, pairs: Dataset, candidates: Dataset, folder: Path, rounds: int = 1) -> None:
    """
    Evaluate one model, query by query; candidates are embedded directly.

    Writes `outcomes.parquet` with a row per query: `pair_id`, `task`, `entity`, `complexity`; whether the target came
    first, `never`, `always` and `auto` (0 or 1); the target probability, `aligned_never` and `aligned_always`; the
    gate's `gate_prob` at the first decision; the rationale `tokens` of always and `tokens_auto`; the number of
    rationales of auto, `rounds_auto`; the `rationale` of always, and whether it states all `right` facts.

    Args:
        checkpoint: the model's folder. Its gate decides at its own threshold.
        pairs: of an Atlas, whose queries are asked.
        candidates: of the Atlas.
        folder: to write to.
        rounds: rationales at most. With one, the vector of auto is one of the other two; with more, auto is asked.
    """
    model = MMEmbR1(str(checkpoint), device="cpu")
    sets = embed_candidates(model, candidates, set(pairs["candidate_set"]), BATCH_SIZE)
    queries = inputs_of(pairs["query"])

    def explained(mode: str) -> Any:
        return model.explain(queries, reasoning=mode, max_reasoning_rounds=rounds, **PLAIN)

    explanations = {mode: explained(mode) for mode in MODES}
    vectors = {mode: vectors_of(rows) for mode, rows in explanations.items()}
    columns: Columns = {**whose(pairs), "complexity": list(pairs["complexity"])}
    columns |= {mode: hits(pairs, vectors[mode], sets) for mode in MODES}
    columns |= {f"aligned_{mode}": aligned(pairs, torch.from_numpy(vectors[mode]), sets).tolist() for mode in MODES}
    columns["gate_prob"] = [float(one["gate_prob"]) for one in explanations["never"]]
    columns["tokens"] = [int(one["num_reasoning_tokens"]) for one in explanations["always"]]
    columns["rationale"] = [str(one["rationale"]) for one in explanations["always"]]
    columns["right"] = states_all(pairs["query_rationale"], columns["rationale"])
    columns |= (
        _auto(columns, model[0].model.config.gate_threshold) if rounds == 1 else _asked(pairs, explained("auto"), sets)
    )
    pq.write_table(pa.table(columns), folder / OUTCOMES_FILE)


def _auto(columns: Mapping[str, Sequence[Any]], threshold: float) -> Columns:
    """Derive the columns of auto: a query's vector is one of the two, however the batch is mixed."""
    thinks = [prob >= threshold for prob in columns["gate_prob"]]
    chosen = zip(thinks, columns["never"], columns["always"], strict=True)
    return {
        "auto": [always if think else never for think, never, always in chosen],
        "tokens_auto": [tokens if think else 0 for think, tokens in zip(thinks, columns["tokens"], strict=True)],
        "rounds_auto": [int(think) for think in thinks],
    }


def _asked(pairs: Dataset, rows: list[dict[str, Any]], sets: Mapping[str, CandidateSet]) -> Columns:
    return {
        "auto": hits(pairs, vectors_of(rows), sets),
        "tokens_auto": [int(one["num_reasoning_tokens"]) for one in rows],
        "rounds_auto": [int(one["num_reasoning_rounds"]) for one in rows],
    }


def whose(pairs: Dataset) -> Columns:
    """The columns that identify each query."""
    return {name: list(pairs[name]) for name in ("pair_id", "task", "entity")}


def vectors_of(rows: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float32]:
    """`(Q, D)` of what `explain` returned."""
    return np.stack([one["embedding"] for one in rows])


def aligned(pairs: Dataset, queries: torch.Tensor, sets: Mapping[str, CandidateSet]) -> torch.Tensor:
    """`(N,)` probability of each query's target among the candidates of its set; `queries` `(N, D)`."""
    found = torch.zeros(len(queries))
    for rows, answers, targets in by_set(pairs, sets):
        positives = torch.from_numpy(answers.places(targets))
        found[rows] = target_probability(queries[rows] @ torch.from_numpy(answers.embeddings).T, positives)
    return found


def by_set(
    pairs: Dataset, sets: Mapping[str, CandidateSet]
) -> Iterator[tuple[npt.NDArray[np.int64], CandidateSet, list[str]]]:
    """The rows of the queries that compete for the same candidates, those candidates, and the rows' targets."""
    names, targets = np.array(pairs["candidate_set"]), np.array(pairs["target_id"])
    for name in sorted(set(names.tolist())):
        rows = np.flatnonzero(names == name)
        yield rows, sets[name], targets[rows].tolist()


def hits(pairs: Dataset, vectors: npt.NDArray[np.float32], sets: Mapping[str, CandidateSet]) -> list[int]:
    """Check whether each query, embedded as `vectors` `(Q, D)`, finds its target before all others of its set."""
    found = np.zeros(len(pairs), dtype=int)
    for rows, answers, targets in by_set(pairs, sets):
        found[rows] = answers.ranks(vectors[rows], targets) == 1
    return found.tolist()


def states_all(right: Sequence[Sequence[str]], rationales: Sequence[str]) -> list[int]:
    """Check whether each rationale states every fact of the right one."""
    return [
        int(all(whole_words(fact).search(rationale) for fact in facts(segments)))
        for segments, rationale in zip(right, rationales, strict=True)
    ]


def answers_of(columns: Mapping[str, npt.NDArray[Any]]) -> Answers:
    """Convert the columns of `measure_outcomes` to what `evaluation.invocation` takes."""
    return Answers(
        task=columns["task"],
        cluster=columns["entity"],
        never=columns["never"],
        always=columns["always"],
        tokens=columns["tokens"],
        gate_prob=columns["gate_prob"],
        target_probability_never=columns["aligned_never"],
        target_probability_always=columns["aligned_always"],
    )
