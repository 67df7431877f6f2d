"""Rows wait in the order of their keys, and how many tokens wait is known."""

from __future__ import annotations

from tests.serving.fake_executor import row

from mmemb_r1.serving.executor import Prepared
from mmemb_r1.serving.row_queue import RowQueue


def test_order_and_tokens():
    queue, rows = RowQueue(), [row(number) for number in range(4)]
    for one, key in zip(rows, [(0, 3.0, 1), (0, 1.0, 2), (-1, 9.0, 3), (0, 1.0, 4)], strict=True):
        one.prepared = Prepared(10 + one.value["number"], None)
        queue.put(key, one)
    assert queue.first() == ((-1, 9.0, 3), rows[2]) and queue.tokens == 46
    assert queue.alike(4, 1000) == [rows[2]]  # of another priority than all others
    queue.take([rows[2]])
    assert queue.alike(2, 1000) == [rows[1], rows[0]]
    assert queue.alike(3, 25) == [rows[1], rows[0]]
    assert queue.drop(lambda one: one is rows[1]) == [rows[1]]
    assert queue.tokens == 23 and len(queue) == 2
    queue.take(rows)
    assert queue.tokens == 0 and queue.first() is None and queue.alike(4, 100) == []


def test_media_stay_apart():
    queue, rows = RowQueue(), [row(number) for number in range(3)]
    rows[0].has_media = rows[2].has_media = True
    for place, one in enumerate(rows):
        queue.put((0, place, place), one)
    assert queue.alike(8, 100) == [rows[0], rows[2]]
