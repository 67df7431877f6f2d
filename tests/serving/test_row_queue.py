"""Rows wait in the order of their keys, and how many tokens wait is known."""

from __future__ import annotations

import random

import pytest
from tests.serving.fake_executor import row

from mmemb_r1.serving.executor import Prepared
from mmemb_r1.serving.row_queue import RowQueue, most_for_its_cost


def test_order_and_tokens():
    queue, rows = RowQueue(), [row(number) for number in range(4)]
    for one, key in zip(rows, [(0, 3.0, 1), (0, 1.0, 2), (-1, 9.0, 3), (0, 1.0, 4)], strict=True):
        one.prepared = Prepared(10 + one.value["number"], None)
        queue.put(key, one)
    assert queue.first() == ((-1, 9.0, 3), rows[2]) and queue.tokens == 46
    assert queue.alike(4, 1000) == [rows[2]]  # of another priority than all others
    queue.take([rows[2]])
    assert queue.alike(2, 1000, fixed=100) == [rows[1], rows[3]]
    assert queue.alike(3, 25, fixed=100) == [rows[0], rows[1]]
    assert queue.alike(3, 25) == [rows[1]]  # a batch costs nothing by itself, and padding does
    assert queue.drop(lambda one: one is rows[1]) == [rows[1]]
    assert queue.tokens == 23 and len(queue) == 2
    queue.take(rows)
    assert queue.tokens == 0 and queue.first() is None and queue.alike(4, 100) == []


def test_media_are_prepared_apart_and_read_with_what_they_can_be_joined_to():
    queue, rows = RowQueue(), [row(number) for number in range(3)]
    rows[0].has_media = rows[2].has_media = True
    for place, one in enumerate(rows):
        queue.put((0, place, place), one)
    assert queue.alike(8, 100) == [rows[0], rows[2]]
    for one, kind in zip(rows, [(), (), (3, 8, 8)], strict=True):
        one.prepared = Prepared(1, None, kind)
    assert queue.alike(8, 100) == [rows[0], rows[1]]


@pytest.mark.parametrize("fixed", [0, 30, 10_000])
def test_the_batch_that_is_chosen_is_the_best_of_all(fixed):
    rng = random.Random(fixed)
    for _ in range(50):
        lengths = sorted(rng.randint(1, 60) for _ in range(rng.randint(1, 12)))
        at, size, limit = rng.randrange(len(lengths)), rng.randint(1, 8), rng.randint(20, 300)

        def worth(start: int, end: int, lengths: list[int] = lengths) -> float:
            return sum(lengths[start:end]) / (fixed + (end - start) * lengths[end - 1])

        chosen = most_for_its_cost(lengths, at, size, limit, fixed)
        allowed = [
            (start, end)
            for start in range(at + 1)
            for end in range(at + 1, len(lengths) + 1)
            if end - start == 1 or (end - start <= size and (end - start) * lengths[end - 1] <= limit)
        ]
        assert (chosen.start, chosen.stop) in allowed
        assert worth(chosen.start, chosen.stop) == max(worth(*one) for one in allowed)
