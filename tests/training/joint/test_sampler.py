from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mmemb_r1.training.joint.sampler import TaskBatchSampler, epoch_sizes, moved_apart

TASKS = ["a"] * 10 + ["b"] * 30 + ["c"] * 5


def rows(batch):
    return [visit.row for visit in batch]


def tasks_of(batch, size):
    """The tasks of each sub-batch."""
    return [{TASKS[row] for row in rows(batch)[start : start + size]} for start in range(0, len(batch), size)]


def test_sub_batches_hold_one_task_each():
    for batch in TaskBatchSampler(TASKS, 12, 4, num_batches=20, task_weights={"a": 1, "b": 1, "c": 1}):
        assert len(batch) == 12
        assert [len(tasks) for tasks in tasks_of(batch, 4)] == [1, 1, 1]


def test_only_what_tasks_have_left_over_is_mixed():
    batches = list(TaskBatchSampler(TASKS, 12, 4))
    assert [len(batch) for batch in batches] == [12, 12, 11, 10]
    whole = [tasks for batch in batches[:2] for tasks in tasks_of(batch, 4)]
    assert sum(len(tasks) > 1 for tasks in whole) <= 1  # 2 of a, 2 of b, 1 of c


class TestAnEpoch:
    @pytest.mark.parametrize(
        ("sizes", "batch_size", "sub_batch_size"),
        [
            ((10, 30, 5), 8, 4),
            ((10, 30, 5), 16, 16),
            ((1, 1), 8, 2),
            ((64,), 8, 8),
            ((65,), 8, 4),
            ((7, 100, 13), 9, 3),
        ],
    )
    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_has_every_pair_once_on_any_number_of_processes(self, sizes, batch_size, sub_batch_size, number):
        tasks = [str(task) for task, size in enumerate(sizes) for _ in range(size)]
        if len(tasks) < number:
            return
        seen, others = [], []
        for process in range(number):
            sampler = TaskBatchSampler(tasks, batch_size, sub_batch_size, seed=1, process=(process, number))
            sampler.set_epoch(3)
            batches = list(sampler)
            assert len(batches) == len(sampler) and all(batches)  # a process without a pair would hang the others
            seen += [row for batch in batches for row in rows(batch)]
            others.append([len(batch) for batch in batches])
        assert sorted(seen) == list(range(len(tasks)))
        assert all(max(column) - min(column) <= 1 for column in zip(*others, strict=True))

    def test_ends_without_a_batch_that_is_nearly_empty(self):
        for count in range(1, 60):
            sizes = epoch_sizes(count, 8)
            assert sum(sizes) == count and max(sizes) <= 8
            assert count <= 8 or min(sizes) >= 4

    def test_of_few_pairs_leaves_no_process_without_one(self):
        assert epoch_sizes(5, 4, least=4) == [5]  # one a device: four and one would leave three processes idle
        assert epoch_sizes(9, 4, least=4) == [4, 5]
        with pytest.raises(ValueError, match="3 pairs can't be parted among 4 processes; start fewer, or give more"):
            TaskBatchSampler(["a"] * 3, 4, 1, process=(0, 4))

    def test_has_small_tasks_in_all_places(self):
        """Not at its end, where the learning rate is lowest."""
        tasks = ["small"] * 3 + ["large"] * 64
        places = set()
        for epoch in range(60):
            sampler = TaskBatchSampler(tasks, 8, 8, seed=epoch)
            places |= {number for number, batch in enumerate(sampler) if {0, 1, 2} & set(rows(batch))}
        assert places == set(range(len(sampler)))

    def test_is_followed_by_another_where_steps_are_counted(self):
        """Batches are full then, and no pair comes a third time before all have come twice."""
        for sub_batch_size in (2, 4):
            counts = Counter()
            for batch in TaskBatchSampler(TASKS, 8, sub_batch_size, num_batches=40):
                assert len(batch) == 8
                counts.update(rows(batch))
                values = [counts[row] for row in range(len(TASKS))]
                assert max(values) - min(values) <= 2
            assert min(values) >= 40 * 8 // len(TASKS) - 1


class TestPairsThatMustNotMeet:
    def batches(self, keys, **options):
        tasks = ["a"] * 24 + ["b"] * 24
        return [rows(batch) for batch in TaskBatchSampler(tasks, 8, 4, keys=keys, **options)]

    def met(self, batches, keys):
        return sum(len(batch) - len({key[0] for key in keys[batch]}) for batch in batches)

    @pytest.mark.parametrize("options", [{}, {"num_batches": 6}])
    def test_stand_in_different_batches(self, options):
        keys = np.arange(48)[:, None] % 12  # each four times, twice in each task
        apart, plain = self.batches(keys, **options), self.batches(None, **options)
        assert self.met(plain, keys) > 0 == self.met(apart, keys)
        assert sorted(sum(apart, [])) == sorted(sum(plain, [])) == list(range(48))
        for batch in apart:
            for start in (0, 4):
                assert len({row < 24 for row in batch[start : start + 4]}) == 1
        assert self.batches(keys, **options) == apart

    def test_stay_where_there_is_no_other_place(self):
        keys = np.zeros((48, 2), dtype=np.int64)
        assert self.batches(keys) == self.batches(None)

    def test_are_told_by_any_of_their_keys(self):
        order, keys = np.arange(4), np.array([[0, 1], [2, 1], [3, 4], [5, 6]])
        borders, tasks = np.array([0, 2, 4]), np.zeros(4, dtype=np.int64)
        moved = moved_apart(order, borders, tasks, keys, np.random.default_rng(0))
        assert {0, 1} not in ({*moved[:2]}, {*moved[2:]}) and sorted(moved) == [0, 1, 2, 3]


class TestSizeExponent:
    def shares(self, exponent):
        sampler = TaskBatchSampler(TASKS, 8, 4, num_batches=2000, size_exponent=exponent)
        drawn = Counter(TASKS[row] for batch in sampler for row in rows(batch))
        return [drawn[task] / drawn.total() for task in "abc"]

    def test_tasks_are_drawn_by_their_size_to_that_power(self):
        for exponent in (0.0, 0.5):
            weights = np.array([10.0, 30.0, 5.0]) ** exponent
            assert self.shares(exponent) == pytest.approx(weights / weights.sum(), abs=0.03)

    def test_at_one_it_is_an_epoch(self):
        assert self.shares(1.0) == pytest.approx([10 / 45, 30 / 45, 5 / 45], abs=0.001)


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
