"""Rows of all jobs are read and think together: each is answered once, rightly, and as soon as it is done."""

from __future__ import annotations

import threading
import time

import pytest
from tests.serving.fake_executor import FakeExecutor, job, row

from mmemb_r1.serving.job_errors import ClosedError, ExecutorError, QueueFullError, RefusedError
from mmemb_r1.serving.scheduler import Scheduler


@pytest.fixture
def executor():
    return FakeExecutor()


@pytest.fixture
def scheduler(executor):
    made = Scheduler(executor, batch_size=4, max_batch_tokens=100, max_waiting=16)
    yield made
    executor.open.set()
    made.close(20)


def numbers(future):
    return [int(answer.embedding[0]) for answer in future.result(20)]


def until(is_so):
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.002)


def held_up(executor, scheduler):
    """Let the executor wait in the reading of a first row, so that what comes after is queued."""
    executor.open.clear()
    first = job(row(0))
    scheduler.submit(first)
    until(lambda: scheduler.waiting == 0)
    return first


def queued(scheduler, *jobs):
    for one in jobs:
        scheduler.submit(one)
    until(lambda: len(scheduler._direct.new) + len(scheduler._thinkers.new) + scheduler._preparing == 0)


def test_each_job_gets_its_answers_in_order(scheduler):
    jobs = [job(*(row(10 * at + place, steps=(place * at) % 3) for place in range(at + 1))) for at in range(5)]
    for one in jobs:
        scheduler.submit(one)
    assert [numbers(one.future) for one in jobs] == [[10 * at + place for place in range(at + 1)] for at in range(5)]
    assert scheduler.waiting == scheduler.thinking == 0 and not scheduler._tickets


def test_direct_rows_are_answered_while_others_think(executor, scheduler):
    executor.step_seconds = 0.01
    slow = job(row(1, steps=60))
    scheduler.submit(slow)
    until(lambda: scheduler.thinking)
    for number in range(5):
        quick = job(row(number))
        scheduler.submit(quick)
        quick.future.result(20)
    assert not slow.future.done()
    assert numbers(slow.future) == [1]


def test_thinkers_join_those_at_work_and_leave_one_by_one(executor, scheduler):
    executor.step_seconds = 0.005
    jobs = [job(row(number, steps=steps)) for number, steps in ((1, 80), (2, 5), (3, 20))]
    left = []
    for one in jobs:
        one.future.add_done_callback(lambda _, number=one.rows[0].value["number"]: left.append(number))
        scheduler.submit(one)
    jobs[0].future.result(20)
    until(lambda: len(left) == 3)
    assert left == [2, 3, 1]
    assert ("step", [1, 2, 3]) in executor.log


def test_no_more_think_than_there_is_room_for(executor, scheduler):
    jobs = [job(row(number, steps=4)) for number in range(16)]
    for one in jobs:
        scheduler.submit(one)  # the executor asserts it
    assert [numbers(one.future) for one in jobs] == [[number] for number in range(16)]
    assert max(len(rows) for what, rows in executor.log if what == "step") <= 8


def test_lower_priorities_come_first(executor, scheduler):
    held_up(executor, scheduler)
    queued(scheduler, job(*map(row, range(1, 5)), priority=1), job(row(5)), job(row(6), priority=-1))
    executor.open.set()
    until(lambda: not scheduler._tickets)
    assert [rows for _, rows in executor.log] == [[0], [6], [5], [1, 2, 3, 4]]


def test_a_large_job_does_not_hold_up_a_small_one(executor, scheduler):
    held_up(executor, scheduler)
    queued(scheduler, job(*map(row, range(1, 11))), job(row(20)), job(row(30)))
    executor.open.set()
    until(lambda: not scheduler._tickets)
    assert {20, 30} <= set(executor.log[1][1])


def test_rows_of_like_length_are_read_together_within_the_limit(executor, scheduler):
    held_up(executor, scheduler)
    lengths = (10, 90, 11, 80, 12, 13, 200)
    queued(scheduler, *(job(row(number, tokens=tokens)) for number, tokens in enumerate(lengths, 1)))
    executor.open.set()
    until(lambda: not scheduler._tickets)
    assert [sorted(rows) for _, rows in executor.log] == [[0], [1, 3, 5, 6], [2], [4], [7]]


def test_a_full_queue_refuses_whole_jobs_and_says_when_to_come_again(executor, scheduler):
    held_up(executor, scheduler)
    scheduler.submit(job(*map(row, range(1, 13))))
    with pytest.raises(QueueFullError) as refused:
        scheduler.submit(job(*map(row, range(20, 25))))
    assert 1 <= refused.value.retry_after <= 60
    last = job(*map(row, range(30, 34)))
    scheduler.submit(last)
    executor.open.set()
    assert numbers(last.future) == [30, 31, 32, 33]
    assert not {20, 21, 22, 23, 24} & {number for _, rows in executor.log for number in rows}


def test_what_is_given_up_is_dropped_and_makes_room(executor, scheduler):
    held_up(executor, scheduler)
    gone = job(*(row(number, steps=number % 2) for number in range(1, 17)))
    scheduler.submit(gone)
    gone.future.cancel()
    kept = job(*map(row, range(20, 32)))
    scheduler.submit(kept)
    executor.open.set()
    assert numbers(kept.future) == list(range(20, 32))
    until(lambda: not scheduler._tickets)
    assert not set(range(1, 17)) & {number for _, rows in executor.log for number in rows}


def test_who_thinks_for_nobody_is_stopped(executor, scheduler):
    executor.step_seconds = 0.002
    gone, stays = job(row(1, steps=10**6)), job(row(2, steps=20))
    scheduler.submit(gone)
    scheduler.submit(stays)
    until(lambda: scheduler.thinking == 2)
    gone.future.cancel()
    assert numbers(stays.future) == [2]
    until(lambda: ("stop", [1]) in executor.log)
    assert scheduler.thinking == 0


class TestDeadlines:
    def test_thinking_stops_and_the_last_vector_is_given(self, executor, scheduler):
        executor.step_seconds = 0.002
        late, patient = job(row(1, steps=10**6), deadline=time.monotonic() + 0.1), job(row(2, steps=100))
        scheduler.submit(late)
        scheduler.submit(patient)
        (answer,) = late.future.result(20)
        assert answer.stopped and answer.rounds == 0
        (answer,) = patient.future.result(20)
        assert not answer.stopped and answer.rounds == 1

    def test_who_is_late_before_it_is_read_gets_a_direct_vector(self, executor, scheduler):
        held_up(executor, scheduler)
        late = job(row(1, steps=5), row(2, steps=5), row(3), deadline=time.monotonic() + 0.05)
        queued(scheduler, late)
        time.sleep(0.06)
        executor.open.set()
        answers = late.future.result(20)
        # the third would not have thought anyhow
        assert [(answer.rounds, answer.stopped) for answer in answers] == [(0, True), (0, True), (0, False)]
        assert not any(what == "step" for what, _ in executor.log)

    def test_who_is_late_before_it_is_prepared_does_not_think_either(self, executor, scheduler):
        late = job(row(1, steps=10**6), deadline=time.monotonic() - 1)
        scheduler.submit(late)
        (answer,) = late.future.result(20)
        assert answer.stopped and answer.rounds == 0


class TestWrongInputs:
    def test_a_job_is_refused_by_the_index_of_its_input(self, scheduler):
        wrong, right = job(row(1), row(2, wrong="it is blank.")), job(row(3))
        scheduler.submit(wrong)
        scheduler.submit(right)
        with pytest.raises(RefusedError, match="Input 1 can't be embedded: it is blank"):
            wrong.future.result(20)
        assert numbers(right.future) == [3]

    def test_an_input_over_which_preparing_fails_fails_alone(self, executor, scheduler, caplog):
        held_up(executor, scheduler)
        jobs = [job(row(number, **({"fails": "prepare"} if number == 2 else {}))) for number in range(1, 5)]
        for one in jobs:
            scheduler.submit(one)
        executor.open.set()
        with pytest.raises(ExecutorError):
            jobs[1].future.result(20)
        assert [numbers(jobs[at].future) for at in (0, 2, 3)] == [[1], [3], [4]]
        assert "an input could not be prepared" in caplog.text


class TestFailingExecutor:
    def test_a_row_that_can_not_be_read_fails_alone(self, executor, scheduler):
        held_up(executor, scheduler)
        jobs = [job(row(number, **({"fails": "read"} if number == 3 else {}))) for number in range(1, 5)]
        queued(scheduler, *jobs)
        executor.open.set()
        with pytest.raises(ExecutorError):
            jobs[2].future.result(20)
        assert [numbers(jobs[at].future) for at in (0, 1, 3)] == [[1], [2], [4]]
        assert scheduler.is_healthy

    @pytest.mark.parametrize("where", ["step", "join"])
    def test_a_row_that_ends_the_thinking_of_all_fails_and_the_others_begin_again(self, executor, scheduler, where):
        held_up(executor, scheduler)
        jobs = [job(row(number, steps=5, **({"fails": where} if number == 2 else {}))) for number in range(1, 5)]
        queued(scheduler, *jobs)
        executor.open.set()
        with pytest.raises(ExecutorError):
            jobs[1].future.result(20)
        assert [numbers(jobs[at].future) for at in (0, 2, 3)] == [[1], [3], [4]]
        assert executor.resets >= 2 and scheduler.is_healthy

    def test_an_executor_that_is_gone_is_not_healthy_and_one_that_comes_back_is(self, executor, scheduler):
        executor.broken = True
        for number in range(3):
            one = job(row(number))
            scheduler.submit(one)
            with pytest.raises(ExecutorError):
                one.future.result(20)
        assert not scheduler.is_healthy
        executor.broken = False
        one = job(row(4))
        scheduler.submit(one)
        assert numbers(one.future) == [4]
        until(lambda: scheduler.is_healthy)

    def test_a_bug_in_the_scheduler_leaves_nobody_waiting(self, executor, scheduler, monkeypatch):
        def fail(*_):
            raise KeyError("bug")

        monkeypatch.setattr(scheduler, "_next_rows", fail)
        one = job(row(1))
        scheduler.submit(one)
        with pytest.raises(ExecutorError):
            one.future.result(20)
        until(lambda: not scheduler.is_healthy)
        with pytest.raises(ClosedError):
            scheduler.submit(job(row(2)))


def test_closing_finishes_what_is_there_and_takes_no_more(executor, scheduler):
    executor.step_seconds = 0.005
    jobs = [job(row(1, steps=30)), job(row(2))]
    for one in jobs:
        scheduler.submit(one)
    closing = threading.Thread(target=scheduler.close, args=(20,))
    closing.start()
    until(lambda: scheduler._closed)
    with pytest.raises(ClosedError):
        scheduler.submit(job(row(3)))
    assert [numbers(one.future) for one in jobs] == [[1], [2]]
    closing.join(20)
    assert not any(thread.is_alive() for thread in scheduler._threads)


def test_closing_in_time_gives_up_what_is_not_done(executor):
    scheduler = Scheduler(executor)
    endless = job(row(1, steps=10**9))
    scheduler.submit(endless)
    assert scheduler.close(0.05) is False
    with pytest.raises(ClosedError):
        endless.future.result(20)


def test_many_threads_submit_and_cancel_at_random_and_none_is_lost(executor):
    import numpy as np

    scheduler = Scheduler(executor, batch_size=4, max_batch_tokens=40, max_waiting=10_000)
    results = []

    def client(seed):
        rng = np.random.default_rng(seed)
        for turn in range(40):
            first = 10_000 * seed + 100 * turn
            count = int(rng.integers(1, 5))
            rows = [
                row(first + at, steps=int(rng.integers(0, 4)), tokens=int(rng.integers(1, 30))) for at in range(count)
            ]
            one = job(*rows, priority=int(rng.integers(0, 2)))
            if rng.random() < 0.2:
                one.deadline = time.monotonic() + float(rng.random()) / 100
            scheduler.submit(one)
            if rng.random() < 0.2:
                one.future.cancel()
            else:
                results.append((list(range(first, first + count)), numbers(one.future)))

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert scheduler.close(20) and not scheduler._tickets
    assert len(results) > 200 and all(wanted == came for wanted, came in results)
