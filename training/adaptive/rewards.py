"""Compute the rewards of rollouts, in TRL's form: lists of one value per rollout in, one float per rollout out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from transformers import ProcessorMixin

from mmemb_r1.content import content_key, given_parts
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.training.joint.collator import numbered
from mmemb_r1.training.tables import StoredInputs, check_pairs, stored_column


class AlignmentScorer:
    """
    The candidates of every pair, each distinct target once.

    Candidates of a pair are the targets of its task and its own hard negatives, without those that are targets of the
    same query.

    Args:
        pairs: with `query` and `target`, and optionally `task` and `negatives`.
        more: another pairs table whose targets are candidates too, task by task.
        temperature: divides the cosine similarities.

    Raises:
        ValueError: if a pair would have no negative.
    """

    def __init__(self, pairs: Dataset, more: Dataset | None = None, temperature: float = 0.02) -> None:
        self.temperature = temperature
        if more is not None:
            check_pairs(more, ("target",), "the table of negatives")
        tables = [pairs] if more is None else [pairs, more]
        targets = [target for table in tables for target in StoredInputs(table, "target")]
        tasks = [task for table in tables for task in _tasks(table)]
        hard = (
            [[given_parts(value) for value in row or []] for row in stored_column(pairs, "negatives").to_pylist()]
            if "negatives" in pairs.column_names
            else [[]] * len(pairs)
        )
        flat = [value for row in hard for value in row]
        numbers, first = numbered([content_key(value) for value in [*targets, *flat]])
        self.inputs = [[*targets, *flat][place] for place in first]
        self._vectors: Tensor | None = None
        self._positive = torch.tensor(numbers[: len(pairs)])
        of_task: dict[str, set[int]] = defaultdict(set)
        for task, number in zip(tasks, numbers[: len(targets)], strict=True):
            of_task[task].add(number)
        right: dict[bytes, set[int]] = defaultdict(set)
        queries = [content_key(query) for query in StoredInputs(pairs, "query")]
        for query, number in zip(queries, numbers[: len(pairs)], strict=True):
            right[query].add(number)
        self._of_task = {task: torch.tensor(sorted(numbers)) for task, numbers in of_task.items()}
        self._task = tasks[: len(pairs)]
        self._own, self._right, start = [], [], len(targets)
        for row, (query, own) in enumerate(zip(queries, hard, strict=True)):
            more_own = set(numbers[start : start + len(own)]) - of_task[tasks[row]] - right[query]
            start += len(own)
            if not more_own and of_task[tasks[row]] <= right[query]:
                raise ValueError(
                    f"row {row} of the pairs table, counted from 0, has no negative: its task {tasks[row]!r} has no "
                    "other target. Add pairs or the column 'negatives', or leave the row out."
                )
            self._own.append(torch.tensor(sorted(more_own), dtype=torch.long))
            self._right.append(torch.tensor(sorted(right[query]), dtype=torch.long))

    @property
    def ready(self) -> bool:
        """Whether the candidates are embedded."""
        return self._vectors is not None

    def embed(self, model: MMEmbR1Model, processor: ProcessorMixin, batch_size: int = 64) -> None:
        """Embed all candidates directly; they are kept until the next call."""
        self._vectors = embed_directly(model, processor, self.inputs, batch_size)

    def log_alignment(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """
        `(N,)` log-probability of each target among its pair's candidates.

        Args:
            rows: `(N,)` in the pairs table.
            vectors: `(N, D)` unit vectors; gradients reach them.
        """
        if self._vectors is None:
            raise ValueError("The candidates are not embedded yet; call embed first.")
        kept = self._vectors.to(vectors.device)
        result = vectors.new_zeros(len(rows), dtype=torch.float32)
        places: dict[int, list[int]] = defaultdict(list)
        for place, row in enumerate(rows.tolist()):
            places[row].append(place)
        for row, own in places.items():
            candidates = torch.cat([self._of_task[self._task[row]], self._own[row]])  # (C,), the target among them
            positive = candidates == self._positive[row]
            ignored = torch.isin(candidates, self._right[row]) & ~positive
            scores = vectors[own].float() @ kept[candidates].float().T / self.temperature  # (n, C)
            scores = scores.masked_fill(ignored.to(scores.device), -torch.inf)
            result[own] = functional.log_softmax(scores, dim=1)[:, int(positive.nonzero())]
        return result


@torch.no_grad()
def embed_directly(
    model: MMEmbR1Model, processor: ProcessorMixin, inputs: Sequence[Any], batch_size: int = 64
) -> Tensor:
    """`(N, D)` direct embeddings of inputs, on the model's device."""
    parts = []
    for start in range(0, len(inputs), batch_size):
        conversations = to_conversations(inputs[start : start + batch_size], media=MediaOptions.of(model.config))
        batch = render(processor, conversations, model.config.max_text_tokens).to(model.device)
        parts.append(model.embed(**batch, reasoning="never")["embeddings"])
    return torch.cat(parts)


def _tasks(table: Dataset) -> list[str]:
    return table["task"] if "task" in table.column_names else [""] * len(table)


def alignment_reward(alignment: Sequence[float], **kwargs: Any) -> list[float]:
    """
    The alignment of each rollout's last embedding with its pair's target: the target's probability among negatives, in
    0 ... 1. Being relative to the negatives, it does not reward rationales that raise every pair's score.

    Args:
        alignment: measured by the scoring embedder.
        **kwargs: ignored.

    Source: reward by alignment is the paper's; a bounded one is ours.

    >>> alignment_reward(alignment=[0.25, 1.0])
    [0.25, 1.0]
    """
    return [float(value) for value in alignment]


def cost_reward(num_reasoning_tokens: Sequence[int], reasoning_budget: Sequence[int], **kwargs: Any) -> list[float]:
    """
    Minus the share of its budget that a rollout spent: 0 for a direct embedding, -1 for a spent budget.

    Args:
        num_reasoning_tokens: rationale tokens of each rollout, of all rounds.
        reasoning_budget: what it may spend in all rounds.
        **kwargs: ignored.

    Source: ours.

    >>> cost_reward(num_reasoning_tokens=[0, 16], reasoning_budget=[64, 64])
    [0.0, -0.25]
    """
    return [-used / budget for used, budget in zip(num_reasoning_tokens, reasoning_budget, strict=True)]


def format_reward(
    reasoned: Sequence[bool], num_reasoning_tokens: Sequence[int], truncated: Sequence[bool], **kwargs: Any
) -> list[float]:
    """
    1 for a direct embedding and for rationales that say something and end by themselves, 0 for others: the format
    favours neither decision.

    Args:
        reasoned: whether each rollout thought.
        num_reasoning_tokens: rationale tokens of each.
        truncated: whether any of its rationales was closed by force.
        **kwargs: ignored.

    Source: a format reward is the paper's; that both decisions get it is ours.

    >>> format_reward(reasoned=[False, True, True], num_reasoning_tokens=[0, 9, 64], truncated=[False, False, True])
    [1.0, 1.0, 0.0]
    """
    rows = zip(reasoned, num_reasoning_tokens, truncated, strict=True)
    return [float(not thought or (length > 0 and not cut)) for thought, length, cut in rows]
