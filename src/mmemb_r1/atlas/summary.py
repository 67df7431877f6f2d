"""What can be read off a built Atlas: its texts, and the score of an answer that looks at nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .splits import TRAIN

if TYPE_CHECKING:
    from datasets import Dataset

    from .build import Atlas


def atlas_texts(atlas: Atlas) -> list[str]:
    """All text a model meets in training: questions, answers and rationales of train, and every candidate."""
    texts: set[str] = set()
    columns = ["query_text", "target_text", "query_rationale", "target_rationale"]
    flat = atlas.pairs[TRAIN].flatten().rename_columns({"query.text": "query_text", "target.text": "target_text"})
    flat = flat.select_columns(columns)
    for column in columns:
        for value in flat[column]:
            texts.update(value if isinstance(value, list) else [value])
    texts.update(atlas.candidates.flatten().select_columns(["input.text"])["input.text"])
    return sorted(text for text in texts if text)


def majority_baseline(pairs_train: Dataset, pairs_eval: Dataset) -> dict[str, float]:
    """hit@1 per task of always giving the task's most frequent answer in training (0 for a task not trained)."""
    trained: dict[str, Counter[str]] = {}
    for task, answer in _tasks_and_answers(pairs_train):
        trained.setdefault(task, Counter())[answer] += 1
    majority = {task: min(count, key=lambda answer: (-count[answer], answer)) for task, count in trained.items()}
    hits: dict[str, list[bool]] = {}
    for task, answer in _tasks_and_answers(pairs_eval):
        hits.setdefault(task, []).append(majority.get(task) == answer)
    return {task: sum(right) / len(right) for task, right in hits.items()}


def _tasks_and_answers(pairs: Dataset) -> Iterator[tuple[str, str]]:
    return zip(pairs["task"], pairs["target_id"], strict=True)
