"""Compute how often answers are right that need no model, and no picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from datasets import Dataset

Key = TypeVar("Key", bound=Hashable)


def majority_baseline(pairs_train: Dataset, pairs_eval: Dataset) -> dict[str, float]:
    """Compute hit@1 per task of always giving the task's most frequent training answer (0 for a task not trained)."""
    most_frequent = _most_frequent(zip(pairs_train["task"], pairs_train["target_id"], strict=True))
    answers = zip(pairs_eval["task"], pairs_eval["target_id"], strict=True)
    return _hits((task, most_frequent.get(task) == answer) for task, answer in answers)


def no_image_baseline(pairs_train: Dataset, pairs_eval: Dataset) -> dict[str, float]:
    """
    Compute hit@1 per task of giving the answer that is most frequent in training for the same task and query text.

    That is what the text alone gives: a text that was not trained gets the task's most frequent answer.

    Args:
        pairs_train, pairs_eval: with the columns `task`, `query` and `target_id`.

    Returns:
        Task -> share of its queries, for the tasks of `pairs_eval` of which any query has a picture.
    """
    trained, asked = _questions(pairs_train), _questions(pairs_eval)
    of_task = _most_frequent((task, answer) for task, _, _, answer in trained)
    of_text = _most_frequent(((task, text), answer) for task, text, _, answer in trained)
    with_pictures = {task for task, _, pictures, _ in asked if pictures}
    return _hits(
        (task, of_text.get((task, text), of_task.get(task)) == answer)
        for task, text, _, answer in asked
        if task in with_pictures
    )


def _questions(pairs: Dataset) -> list[tuple[str, str | None, int, str]]:
    """List task, query text, number of query pictures and answer of each pair, without decoding a picture."""
    import pyarrow.compute as pc

    table = pairs.select_columns(["task", "query", "target_id"]).with_format("arrow")[:]
    texts = pc.struct_field(table["query"], "text").to_pylist()
    numbers = pc.fill_null(pc.list_value_length(pc.struct_field(table["query"], "image")), 0).to_pylist()
    return list(zip(table["task"].to_pylist(), texts, numbers, table["target_id"].to_pylist(), strict=True))


def _most_frequent(answers: Iterable[tuple[Key, str]]) -> dict[Key, str]:
    """Find the most frequent answer of each key; of several, the first in the alphabet."""
    counts: dict[Key, Counter[str]] = {}
    for key, answer in answers:
        counts.setdefault(key, Counter())[answer] += 1
    return {key: min(count, key=lambda answer: (-count[answer], answer)) for key, count in counts.items()}


def _hits(rights: Iterable[tuple[str, bool]]) -> dict[str, float]:
    hits: dict[str, list[bool]] = {}
    for task, right in rights:
        hits.setdefault(task, []).append(right)
    return {task: sum(right) / len(right) for task, right in hits.items()}
