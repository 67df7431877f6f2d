"""The gate's supervised warm start: where is the target found better after a thought, and by how much?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset

from mmemb_r1 import MMEmbR1
from mmemb_r1.content import inputs_of
from mmemb_r1.evaluation.atlas_tasks import CandidateSet, embed_candidates
from mmemb_r1.modeling.backbones_mmemb_r1 import model_inputs
from mmemb_r1.rationale_tokens import append_tokens, suffix_of_ids
from mmemb_r1.training.adaptive.gate import alignment, fit_gate

BATCH_SIZE = 128
GATE_FACTS = "gate.json"  # what `fit_gate` said, where it is kept
GATE_COST = 0.02  # what a thought has to gain, as probability of the target, to be worth its time


def fit_gate_of(
    checkpoint: Path, pairs: Dataset, candidates: Dataset, folder: Path, rounds: int = 1
) -> dict[str, Any]:
    """
    Fit a checkpoint's gate on pairs that its embedder was not fitted to, and save the model with it.

    Args:
        checkpoint: the model's folder.
        pairs: an Atlas table, the `policy` split.
        candidates: of the Atlas.
        folder: for the model.
        rounds: rationales at most; the gate is fitted on the decision before each of them, and the model that is saved
            thinks so often.

    Returns:
        What [`fit_gate`] returned.
    """
    model = MMEmbR1(str(checkpoint), device="cpu")
    if rounds == 1:
        gap = utility_gap(model, pairs, candidates)
        hidden = gate_inputs(model, inputs_of(pairs["query"]))
    else:
        model[0].model.config.max_reasoning_rounds = rounds
        hidden, gap = decisions(model, pairs, candidates, rounds)
    facts = fit_gate(model[0].model.gate, hidden, gap, cost=GATE_COST)
    model.save_pretrained(str(folder))
    return facts


def utility_gap(model: MMEmbR1, pairs: Dataset, candidates: Dataset, batch_size: int = BATCH_SIZE) -> torch.Tensor:
    """`(N,)` how much thinking improves each query's alignment with its target among its candidates."""
    queries = inputs_of(pairs["query"])
    direct, reasoned = (
        torch.from_numpy(model.encode(queries, reasoning=mode, batch_size=batch_size)) for mode in ("never", "always")
    )
    sets = embed_candidates(model, candidates, set(pairs["candidate_set"]), batch_size)
    return aligned(pairs, reasoned, sets) - aligned(pairs, direct, sets)


def aligned(pairs: Dataset, queries: torch.Tensor, sets: Mapping[str, CandidateSet]) -> torch.Tensor:
    """`(N,)` probability of each query's target among the candidates of its set; `queries` `(N, D)`."""
    found = torch.zeros(len(queries))
    for rows, answers, targets in by_set(pairs, sets):
        positives = torch.from_numpy(answers.places(targets))
        found[rows] = alignment(queries[rows], torch.from_numpy(answers.embeddings), positives)
    return found


def by_set(
    pairs: Dataset, sets: Mapping[str, CandidateSet]
) -> Iterator[tuple[npt.NDArray[np.int64], CandidateSet, list[str]]]:
    """The rows of the queries that compete for the same candidates, those candidates, and the rows' targets."""
    names, targets = np.array(pairs["candidate_set"]), np.array(pairs["target_id"])
    for name in sorted(set(names.tolist())):
        rows = np.flatnonzero(names == name)
        yield rows, sets[name], targets[rows].tolist()


@torch.no_grad()
def gate_inputs(model: MMEmbR1, queries: list[Any], batch_size: int = BATCH_SIZE) -> torch.Tensor:
    """`(N, H)` hidden states at the first `<|embed|>`, which the gate reads."""
    states = []
    for start in range(0, len(queries), batch_size):
        features = model_inputs(model.preprocess(queries[start : start + batch_size]))
        states.append(model[0].model(**features).last_hidden_state[:, -1])  # prompts are padded on the left
    return torch.cat(states)


@torch.no_grad()
def decisions(
    model: MMEmbR1, pairs: Dataset, candidates: Dataset, rounds: int, batch_size: int = BATCH_SIZE
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    All decisions of chains that are thought to their end.

    Returns:
        Hidden states `(N * rounds, H)` before each round, and what the round adds to the alignment `(N * rounds,)`.
    """
    sets = embed_candidates(model, candidates, set(pairs["candidate_set"]), batch_size)
    queries = inputs_of(pairs["query"])
    states: list[torch.Tensor] = []
    vectors: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []
    gate = model[0].model.gate
    hook = gate.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    try:
        for start in range(0, len(queries), batch_size):
            features = model_inputs(model.preprocess(queries[start : start + batch_size]))
            written = model[0].model.embed(
                **features, reasoning="always", max_reasoning_rounds=rounds, output_all_embeddings=True
            )
            seen.clear()
            model[0].model(**with_thoughts(model, features, written.rationale_ids))
            if len(seen) != rounds + 1:
                raise ValueError(f"the chains have {len(seen) - 1} rounds; expected {rounds}, as all were to think")
            states.append(torch.stack(seen[:rounds], dim=1))  # (B, R, H)
            vectors.append(written.all_embeddings)  # (B, R + 1, D)
    finally:
        hook.remove()
    every = torch.cat(vectors)
    scores = torch.stack([aligned(pairs, every[:, k], sets) for k in range(rounds + 1)], dim=1)  # (N, R + 1)
    return torch.cat(states).flatten(0, 1), (scores[:, 1:] - scores[:, :-1]).flatten()


def with_thoughts(model: MMEmbR1, features: Mapping[str, Any], rationale_ids: torch.Tensor) -> dict[str, Any]:
    """Prompts with their chains after them: the input of a whole pass. `rationale_ids` `(B, T)` as `embed` gives."""
    config = model[0].model.config
    suffixes = [suffix_of_ids(config, ids[ids >= 0].tolist()) for ids in rationale_ids]
    return append_tokens(dict(features), suffixes, model.tokenizer.pad_token_id, "left")
