"""One number for a checkpoint, by which one is preferred to another."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch

from mmemb_r1.training.adaptive.rewards import AlignmentScorer
from mmemb_r1.training.tables import StoredInputs, check_pairs

if TYPE_CHECKING:
    from datasets import Dataset

    from mmemb_r1.sentence_transformer import MMEmbR1


def validation_score(model: MMEmbR1, pairs: Dataset, batch_size: int = 32) -> float:
    """
    How probable the right targets are for queries that think where the gate says so: the mean over the tasks of the
    mean probability of a pair's target among the targets of its task and its own negatives [ours].

    It moves with every pair, unlike the share of targets that come first, and a model that gives everything the same
    vector scores 1 / candidates.

    Args:
        model: its queries are embedded with `reasoning="auto"`, candidates directly.
        pairs: with `query` and `target`, and optionally `task` and `negatives`; of none of them was it trained.
        batch_size: of the embedding.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: if a pair has no negative.
    """
    check_pairs(pairs, ("query", "target"))
    scorer = AlignmentScorer(pairs)
    scorer.embed(model[0].model, model[0].processor, batch_size)
    queries = list(StoredInputs(pairs, "query"))
    vectors = model.encode(queries, reasoning="auto", batch_size=batch_size, convert_to_tensor=True)  # (N, D)
    probabilities = scorer.log_alignment(torch.arange(len(pairs)), vectors).exp().tolist()
    of_task: dict[str, list[float]] = defaultdict(list)
    tasks = pairs["task"] if "task" in pairs.column_names else [""] * len(pairs)
    for task, probability in zip(tasks, probabilities, strict=True):
        of_task[task].append(probability)
    return sum(sum(values) / len(values) for values in of_task.values()) / len(of_task)
