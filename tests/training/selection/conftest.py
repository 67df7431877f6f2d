"""A table of pairs, rationales of workers whose quality is known, and evaluators that are pure functions of texts."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset

COUNTRIES = {
    "Peru": "Lima", "Chile": "Santiago", "Japan": "Tokyo", "Kenya": "Nairobi", "Norway": "Oslo", "Egypt": "Cairo",
    "Cuba": "Havana", "Ghana": "Accra", "Italy": "Rome", "France": "Paris", "Spain": "Madrid", "Iran": "Tehran",
}  # fmt: skip
DIGITS = {"1 + 1": "2", "2 + 3": "5", "4 + 4": "8", "1 + 6": "7", "3 + 3": "6", "5 + 4": "9"}


def pair(pair_id, query, target, task="capital", negatives=()):
    return {
        "pair_id": pair_id,
        "task": task,
        "query": {"text": query},
        "target": {"text": target},
        "negatives": [{"text": text} for text in negatives],
    }


def rationale(pair_id, worker, text, side="query", sample=0, error=None):
    return {
        "pair_id": pair_id,
        "side": side,
        "worker": worker,
        "sample": sample,
        "seed": 7,
        "text": text,
        "num_tokens": None if text is None else len(text.split()),
        "finish_reason": "error" if error else "stop",
        "error": error,
    }


class FakeEvaluator:
    """Answers by a function `(query, target, rationale) -> log-odds`, and notes what it was asked."""

    def __init__(self, answer, name="fake"):
        self.answer, self.definition = answer, {"kind": name}
        self.trials, self.calls = [], []

    def match_logits(self, trials):
        self.calls.append(len(trials))
        self.trials += trials
        return [torch.tensor([self._row(trial, other) for other in trial.others]) for trial in trials]

    def _row(self, trial, other):
        query, target = (trial.anchor, other) if trial.side == "query" else (other, trial.anchor)
        return [float(self.answer(query["text"], target["text"], rationale)) for rationale in trial.rationales]


ANSWERS = {**COUNTRIES, **DIGITS}


def knowing(query: str, target: str, rationale: str | None) -> float:
    """Knows the pairs; with a rationale, a match is what it speaks of."""
    if rationale is None:
        return 1.0 if ANSWERS.get(query) == target else -1.0
    return 3.0 if query in rationale and target in rationale else -3.0


def gullible(query: str, target: str, rationale: str | None) -> float:
    """Believes anything that comes with a rationale."""
    return -1.0 if rationale is None else 3.0


def guessing(query: str, target: str, rationale: str | None) -> float:
    """A function of the texts that has nothing to do with them."""
    return zlib.crc32(repr((query, target, rationale)).encode()) / 2**31 - 1


def make_pairs() -> Dataset:
    rows = [pair(f"capital/{country}", country, capital) for country, capital in COUNTRIES.items()]
    return Dataset.from_list(rows + [pair(f"sum/{query}", query, target, "sum") for query, target in DIGITS.items()])


def make_rationales() -> Dataset:
    """Both sides of every pair: a worker that is right, one that takes another's answer, one that says nothing; the
    fourth fails on every third input."""
    rows = []
    for table in (COUNTRIES, DIGITS):
        names = list(table)
        for place, name in enumerate(names):
            pair_id = f"{'capital' if table is COUNTRIES else 'sum'}/{name}"
            wrong = table[names[(place + 1) % len(names)]]
            for side in ("query", "target"):
                rows.append(rationale(pair_id, "right", f"{name} goes with {table[name]}", side))
                if side == "query":
                    rows.append(rationale(pair_id, "wrong", f"{name} goes with {wrong}", side))
                else:
                    rows.append(rationale(pair_id, "wrong", f"{names[place - 1]} goes with {table[name]}", side))
                rows += [rationale(pair_id, "empty talk", "Let me think about it.", side, k) for k in range(2)]
                failed = place % 3 == 0
                rows.append(rationale(pair_id, "flaky", None if failed else f"{name} and {table[name]}", side,
                                      error="timeout" if failed else None))  # fmt: skip
    return Dataset.from_list(sorted(rows, key=lambda row: row["worker"]))


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than all the rest of a selection."""
    monkeypatch.setattr("mmemb_r1.training.selection.select.draw_report", lambda *args: None)


@pytest.fixture
def pairs() -> Dataset:
    return make_pairs()


@pytest.fixture
def rationales() -> Dataset:
    return make_rationales()


@pytest.fixture
def make_pair() -> Callable[..., dict[str, Any]]:
    return pair


@pytest.fixture
def make_rationale() -> Callable[..., dict[str, Any]]:
    return rationale


@pytest.fixture
def evaluator() -> Callable[..., FakeEvaluator]:
    """`evaluator(answer)`: a function `(query, target, rationale) -> log-odds`, or the name of one above."""
    named = {"knowing": knowing, "gullible": gullible, "guessing": guessing}
    return lambda answer, **options: FakeEvaluator(named.get(answer, answer), **options)
