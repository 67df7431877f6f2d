from __future__ import annotations

from collections import Counter

import pytest

from mmemb_r1.training.joint.data import TaskBatchSampler

TASKS = ["a"] * 10 + ["b"] * 30 + ["c"] * 5


def rows(batch):
    return [visit.row for visit in batch]


def test_sub_batches_hold_one_task_each():
    for batch in TaskBatchSampler(TASKS, batch_size=12, sub_batch_size=4, num_batches=20):
        assert len(batch) == 12
        for start in range(0, 12, 4):
            assert len({TASKS[row] for row in rows(batch)[start : start + 4]}) == 1


def test_weights_decide_how_often_a_task_is_drawn_and_unnamed_tasks_are_not():
    sampler = TaskBatchSampler(TASKS, batch_size=8, sub_batch_size=4, num_batches=500, task_weights={"a": 3, "b": 1})
    drawn = Counter(TASKS[row] for batch in sampler for row in rows(batch))
    assert "c" not in drawn
    assert drawn["a"] / drawn["b"] == pytest.approx(3, rel=0.25)


def test_without_weights_tasks_are_drawn_by_their_number_of_rows():
    sampler = TaskBatchSampler(TASKS, batch_size=8, sub_batch_size=4, num_batches=500)
    drawn = Counter(TASKS[row] for batch in sampler for row in rows(batch))
    assert drawn["b"] / drawn["a"] == pytest.approx(3, rel=0.25)


def test_every_pair_of_a_task_comes_before_one_comes_again():
    drawn = [row for batch in TaskBatchSampler(["a"] * 8, 4, 4, num_batches=6) for row in rows(batch)]
    for start in range(0, len(drawn), 8):
        assert sorted(drawn[start : start + 8]) == list(range(8))


def test_a_task_smaller_than_a_sub_batch_repeats():
    batch = next(iter(TaskBatchSampler(["a"] * 3, 8, 8, num_batches=1)))
    assert len(batch) == 8 and set(rows(batch)) == {0, 1, 2}


def test_the_seed_decides_the_order():
    def batches(seed):
        return list(TaskBatchSampler(TASKS, 8, 4, num_batches=5, seed=seed))

    assert batches(1) == batches(1)
    assert list(map(rows, batches(1))) != list(map(rows, batches(2)))


def test_every_epoch_has_an_order_of_its_own():
    sampler = TaskBatchSampler(TASKS, 8, 4, num_batches=5)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert list(map(rows, second)) != list(map(rows, first))
    assert {visit.epoch for batch in second for visit in batch} == {1}
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_positions_count_up_over_the_epoch():
    visits = [visit for batch in TaskBatchSampler(TASKS, 8, 4, num_batches=5) for visit in batch]
    assert [visit.position for visit in visits] == list(range(40))
    assert {visit.epoch for visit in visits} == {0}


@pytest.mark.parametrize("number", [2, 3, 4])
def test_the_parts_of_all_processes_are_the_batch_of_one(number):
    def sampler(*process):
        whole = TaskBatchSampler(TASKS, 24, 4, num_batches=7, seed=5, process=process)
        whole.set_epoch(2)
        assert len(whole) == 7
        return list(whole)

    parts = [sampler(index, number) for index in range(number)]
    assert all(len(batch) == 24 // number for part in parts for batch in part)
    assert [sum(batches, []) for batches in zip(*parts, strict=True)] == sampler(0, 1)


@pytest.mark.parametrize("weights", [{"a": 0.0}, {"a": -1.0, "b": 2.0}])
def test_weights_out_of_range_are_refused(weights):
    with pytest.raises(ValueError, match="have to be non-negative and not all 0"):
        TaskBatchSampler(TASKS, 8, 4, 1, task_weights=weights)


def test_a_weight_for_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="task_weights names .'d'.; the data has the tasks"):
        TaskBatchSampler(TASKS, 8, 4, 1, task_weights={"d": 1.0})
