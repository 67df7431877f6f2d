"""What an embedding depends on, over random batches: its input and the options, and nothing beside it or before it."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tests.fuzzing.random_inputs import draw_batch, draw_input, draw_text

from mmemb_r1 import MMEmbR1
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.tiny import FAMILIES

POOL = 12  # inputs of each family, of which its batches are drawn
TOLERANCE = 1e-5
WAYS = ("never", "always", "auto", "query", "document")


@dataclass
class Family:
    """A model that is used again and again, one that embeds each input alone, and what came out of that."""

    name: str
    used: MMEmbR1
    fresh: MMEmbR1
    pool: list[Any]
    threshold: float = 0.0
    known: dict[tuple[int, str], np.ndarray | str] = field(default_factory=dict)

    def options(self, way: str) -> dict[str, Any]:
        if way == "auto":
            return {"reasoning": "auto", "gate_threshold": self.threshold}
        return {"task": way} if way in ("query", "document") else {"reasoning": way}

    def alone(self, place: int, way: str) -> np.ndarray | str:
        """Get the vector of one input that is embedded by itself, or why it is refused."""
        if (place, way) not in self.known:
            try:
                self.known[place, way] = self.fresh.encode([self.pool[place]], **self.options(way))[0]
            except InputError as error:
                self.known[place, way] = error.reason
        return self.known[place, way]


def widest_gap(family: Family) -> float:
    """Find a threshold that some inputs reach and others do not, as far from all of them as can be."""
    gate = []
    for value in family.pool:
        with suppress(InputError):
            gate.append(family.fresh.encode([value], reasoning="never", output_value=None)[0]["gate_prob"].item())
    low, high = max(pairwise(sorted(gate)), key=lambda pair: pair[1] - pair[0])
    return (low + high) / 2


@pytest.fixture(scope="module")
def families(thinking: Callable[..., MMEmbR1], one_thread: None) -> dict[str, Family]:
    made = {}
    for name in FAMILIES:
        rng = random.Random(name)
        pool = [draw_input(rng) for _ in range(POOL)]
        family = made[name] = Family(
            name, thinking(name, max_reasoning_tokens=2), thinking(name, max_reasoning_tokens=2), pool
        )
        family.threshold = widest_gap(family)
    return made


def leave_traces(model: MMEmbR1, rng: random.Random) -> None:
    """Use what a model shares between its calls as its owner may: none of it may be remembered."""
    tokenizer = model.tokenizer
    tokenizer.padding_side = rng.choice(("left", "right"))
    tokenizer.truncation_side = rng.choice(("left", "right"))
    tokenizer([draw_text(rng), "a"], padding=rng.choice((True, "max_length")), truncation=True, max_length=5)
    torch.set_num_threads(2 if rng.random() < 0.03 else 1)  # two have to wait for one another
    if rng.random() < 0.3:
        with pytest.raises(InputError):
            model.encode([draw_text(rng), {"image": b"no picture"}])


def expected_of(family: Family, rng: random.Random) -> tuple[list[int], str, list[np.ndarray | str]]:
    """Draw a batch: places of its inputs, the way to embed them, and what comes out for each of them alone."""
    places, way = draw_batch(rng, family.pool), rng.choice(WAYS)
    return places, way, [family.alone(place, way) for place in places]


def check_batch(family: Family, seed: int) -> None:
    """Draw a batch, and compare each of its rows with the input alone; or the error with that of the input."""
    rng = random.Random(seed)
    places, way, expected = expected_of(family, rng)
    options = {"batch_size": rng.choice((1, 2, 3, 32)), "decode_batch_size": rng.choice((None, 1, 3))}
    options["max_batch_tokens"] = rng.choice((None, 64, 300))
    try:
        vectors = family.used.encode([family.pool[place] for place in places], **family.options(way), **options)
    except InputError as error:
        assert error.reason == expected[error.index], (family.name, seed)
        return
    refused = [row for row in expected if isinstance(row, str)]
    assert not refused, (family.name, seed)
    worst = np.abs(vectors - np.stack(expected)).max(axis=1)  # type: ignore[arg-type]
    assert worst.max() <= TOLERANCE, (family.name, seed, way, worst)


@pytest.fixture
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def check_batches(families: dict[str, Family], number: int) -> None:
    """Check batches of all families, one after the other and then the same number in four threads."""
    chosen = [list(families.values())[seed // 8 % len(families)] for seed in range(number)]  # threads share a model
    for seed in range(number // 2):
        leave_traces(chosen[seed].used, random.Random(seed))
        check_batch(chosen[seed], seed)
    torch.set_num_threads(1)
    seeds = range(number // 2, number)
    for seed in seeds:
        expected_of(chosen[seed], random.Random(seed))  # no work of the threads'
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns far more often than they would
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda seed: check_batch(chosen[seed], seed), seeds))
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.usefixtures("threads_as_before")
def test_a_batch_is_its_parts(families):
    check_batches(families, 32)


@pytest.mark.slow
@pytest.mark.usefixtures("threads_as_before")
def test_a_thousand_batches_are_their_parts(families):
    check_batches(families, 1000)
    outcomes = [outcome for family in families.values() for outcome in family.known.values()]
    vectors = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    assert len(vectors) > len(outcomes) / 2  # most inputs are fine, some are refused, and vectors differ
    assert len(vectors) < len(outcomes)
    assert np.mean([np.abs(one - other).max() for one, other in zip(vectors, vectors[1:], strict=False)]) > 0.01
