from __future__ import annotations

from collections import Counter

import pytest

from mmemb_r1.training.joint_sampler import TaskBatchSampler

TASKS = ["a"] * 10 + ["b"] * 30 + ["c"] * 5


def test_sub_batches_hold_one_task_each():
    for batch in TaskBatchSampler(TASKS, batch_size=12, sub_batch_size=4, num_batches=20):
        assert len(batch) == 12
        for start in range(0, 12, 4):
            assert len({TASKS[row] for row in batch[start : start + 4]}) == 1


def test_weights_decide_how_often_a_task_is_drawn_and_unnamed_tasks_are_not():
    sampler = TaskBatchSampler(TASKS, batch_size=8, sub_batch_size=4, num_batches=500, task_weights={"a": 3, "b": 1})
    drawn = Counter(TASKS[row] for batch in sampler for row in batch)
    assert "c" not in drawn
    assert drawn["a"] / drawn["b"] == pytest.approx(3, rel=0.25)


def test_every_pair_of_a_task_comes_before_one_comes_again():
    rows = [row for batch in TaskBatchSampler(["a"] * 8, 4, 4, num_batches=6) for row in batch]
    for start in range(0, len(rows), 8):
        assert sorted(rows[start : start + 8]) == list(range(8))


def test_a_task_smaller_than_a_sub_batch_repeats():
    batch = next(iter(TaskBatchSampler(["a"] * 3, 8, 8, num_batches=1)))
    assert len(batch) == 8 and set(batch) == {0, 1, 2}


def test_the_seed_decides_the_order():
    def batches(seed):
        return list(TaskBatchSampler(TASKS, 8, 4, num_batches=5, seed=seed))

    assert batches(1) == batches(1) != batches(2)


def test_every_epoch_has_an_order_of_its_own():
    sampler = TaskBatchSampler(TASKS, 8, 4, num_batches=5)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


@pytest.mark.parametrize("weights", [{"a": 0.0}, {"a": -1.0, "b": 2.0}])
def test_weights_out_of_range_are_refused(weights):
    with pytest.raises(ValueError, match="have to be non-negative and not all 0"):
        TaskBatchSampler(TASKS, 8, 4, 1, task_weights=weights)


def test_a_weight_for_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="task_weights names .'d'.; the data has the tasks"):
        TaskBatchSampler(TASKS, 8, 4, 1, task_weights={"d": 1.0})
