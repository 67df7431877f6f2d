"""Measure the probability of each pair's target among its candidates, for rewards and to compare checkpoints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import ProcessorMixin

from mmemb_r1.content import content_key, given_parts
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.objective import TEMPERATURE, target_probability
from mmemb_r1.training.tables import StoredInputs, check_pairs, number_distinct, stored_column

if TYPE_CHECKING:
    from mmemb_r1.sentence_transformers import MMEmbR1


class TargetScorer:
    """
    Measure how probable the target of a pair is for a vector of its query. Distinct candidates are embedded once.

    Candidates of a pair are the targets of its task, in `pairs` (with `query` and `target`, and optionally `task` and
    `negatives`) and `more`, and its own hard negatives, without those that are targets of the same query. A pair
    without a negative is a `ValueError`.
    """

    def __init__(self, pairs: Dataset, more: Dataset | None = None, temperature: float = TEMPERATURE) -> None:
        self.temperature = temperature
        if more is not None:
            check_pairs(more, ("target",), "the table of negatives")
        tables = [pairs] if more is None else [pairs, more]
        targets = [target for table in tables for target in StoredInputs(table, "target")]
        tasks = [task for table in tables for task in _tasks(table)]
        rows: list[list[Any]] = [[]] * len(pairs)
        if "negatives" in pairs.column_names:
            rows = stored_column(pairs, "negatives").to_pylist()
        hard = [[given_parts(value) for value in row or []] for row in rows]
        everything = [*targets, *(value for row in hard for value in row)]
        numbers, first = number_distinct([content_key(value) for value in everything])
        self.inputs = [everything[place] for place in first]
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

    def log_probability(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """
        Compute the log-probability `(N,)` of the targets of rows `(N,)` of the pairs for unit vectors `(N, D)`.

        Gradients reach the vectors. Before [`embed`] it is a `ValueError`.
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
            column = positive.nonzero()[0].to(scores.device).expand(len(own))
            result[own] = target_probability(scores, column, temperature=1, log=True)
        return result


@torch.no_grad()
def embed_directly(
    model: MMEmbR1Model, processor: ProcessorMixin, inputs: Sequence[Any], batch_size: int = 64
) -> Tensor:
    """Embed inputs directly: `(N, D)`, on the model's device."""
    parts = []
    for start in range(0, len(inputs), batch_size):
        conversations = to_conversations(inputs[start : start + batch_size], media=MediaOptions.of(model.config))
        batch = render(processor, conversations, model.config.max_text_tokens).to(model.device)
        parts.append(model.embed(**batch, reasoning="never")["embeddings"])
    return torch.cat(parts)


def _tasks(table: Dataset) -> list[str]:
    return table["task"] if "task" in table.column_names else [""] * len(table)


def validation_score(model: MMEmbR1, pairs: Dataset, batch_size: int = 32) -> float:
    """
    Score a checkpoint by one number, by which it is preferred to another: the mean over the tasks of the mean target
    probability, among the targets of its task and its own negatives, of queries that reason where the gate says so
    [ours]. A pair without a negative is a `ValueError`.

    It moves with every pair, unlike the share of targets that come first, and a model that gives everything the same
    vector scores 1 / candidates.
    """
    check_pairs(pairs, ("query", "target"))
    scorer = TargetScorer(pairs)
    scorer.embed(model[0].model, model[0].processor, batch_size)
    queries = list(StoredInputs(pairs, "query"))
    vectors = model.encode(queries, reasoning="auto", batch_size=batch_size, convert_to_tensor=True)  # (N, D)
    probabilities = scorer.log_probability(torch.arange(len(pairs)), vectors).exp().tolist()
    of_task: dict[str, list[float]] = defaultdict(list)
    for task, probability in zip(_tasks(pairs), probabilities, strict=True):
        of_task[task].append(probability)
    return sum(sum(values) / len(values) for values in of_task.values()) / len(of_task)
