"""
Let the rows of all requests be read and think together, in one thread that owns the executor.

    submit ─► prepared by a few threads ─┬─► direct rows: read, and answered at once
                                         └─► rows that may think: read where there is room ─► think, leave one by one

In each turn some direct rows are read, then as many that may think, in batches of like length, then all that think go
on by one step: neither kind waits for more than `batch_size` rows of the other.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace

from mmemb_r1.serving.executor import Answer, Executor, Outcome, Prepared, Row, ThinkingLostError
from mmemb_r1.serving.job_errors import ClosedError, ExecutorError, QueueFullError, RefusedError
from mmemb_r1.serving.row_queue import WINDOW, Key, RowQueue

logger = logging.getLogger(__name__)

PREPARED_BATCHES = 2  # how many full batches of tokens are prepared ahead, of each lane
PREPARED_ROWS = WINDOW  # and how many of rows: what is read together is chosen among them
PREPARED_AT_ONCE = 32  # texts in one call
GATHER_SECONDS = 0.01  # how long a row waits for others that are prepared with it, while the executor is at work
FAILURES = 3  # in a row, after which the executor does not count as healthy
LONGEST_WAIT = 60  # seconds that a client is told to wait
LAST_SECONDS = 1.0  # that a thread gets to end when the time for it is over


@dataclass(eq=False)
class Job:
    """
    Ask for the vectors of a request's inputs.

    Attributes:
        rows: the inputs.
        priority: lower ones are served first.
        deadline: time of `time.monotonic` at which thinking stops; reading is not stopped.
        arrived: when it came, by the same clock.
        future: gets the answers, in order, or the first error; whoever cancels it gives the rows up.
    """

    rows: list[Row]
    priority: int = 0
    deadline: float = math.inf
    arrived: float = field(default_factory=time.monotonic)
    future: Future[list[Answer]] = field(default_factory=Future)


class Observer:
    """Hear what the scheduler does; here, nothing comes of it."""

    def batch_read(self, rows: Sequence[Row]) -> None:
        """Rows were read in one batch."""

    def stepped(self, rows: int) -> None:
        """So many rows went on by a step."""

    def answered(self, row: Row, answer: Answer, seconds: float) -> None:
        """A row is done, so long after its job arrived."""


@dataclass(eq=False)
class _Ticket:
    """Follow a row through the scheduler. `answers` are those of its job, and `threshold` what it came with."""

    job: Job
    key: Key
    answers: dict[int, Answer]
    threshold: float
    alone: bool = False  # for it was at work when the executor failed


class _Lane:
    """Hold the rows of one kind that were not read yet."""

    def __init__(self) -> None:
        self.new, self.ready = RowQueue(), RowQueue()

    def __len__(self) -> int:
        return len(self.new) + len(self.ready)

    def drop(self, is_dropped: Callable[[Row], bool]) -> list[Row]:
        return self.new.drop(is_dropped) + self.ready.drop(is_dropped)


class Scheduler:
    """
    Schedule rows of all requests. Ends with [`close`].

    Args:
        executor: reads and thinks.
        max_waiting: rows that wait to be read, at most.
        batch_size: rows that are read at once.
        max_batch_tokens: tokens that are read at once, padding included.
        workers: threads that prepare rows.
        observer: hears what is done.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        max_waiting: int = 4096,
        batch_size: int = 32,
        max_batch_tokens: int = 16_384,
        workers: int = 2,
        observer: Observer | None = None,
    ) -> None:
        self.executor, self.observer = executor, observer or Observer()
        self.max_waiting, self.batch_size, self.max_batch_tokens = max_waiting, batch_size, max_batch_tokens
        self._tickets: dict[Row, _Ticket] = {}
        self._direct, self._thinkers = _Lane(), _Lane()
        self._at_work: dict[Row, None] = {}
        self._preparing = 0
        self._some_given_up, self._next_deadline = False, math.inf
        self._clock, self._number, self._failures = 0.0, 0, 0
        self._rate = 0.0  # rows that are answered per second
        self._rated = time.monotonic()
        self._closed = self._ended = self._idle = False
        self._changed = threading.Condition(threading.RLock())
        self._threads = [threading.Thread(target=self._run, name="executor", daemon=True)]
        self._threads += [
            threading.Thread(target=self._prepare, name=f"prepare-{number}", daemon=True) for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    # For everyone

    def submit(self, job: Job) -> None:
        """
        Take a job. All its rows are taken, or none.

        Raises:
            QueueFullError: if there is no room for so many rows.
            ClosedError: after `close`.
        """
        with self._changed:
            if self._closed:
                raise ClosedError("the server is shutting down")
            self._drop_given_up()
            if self.waiting + len(job.rows) > self.max_waiting:
                raise QueueFullError(self._retry_after())
            job.future.add_done_callback(self._note_given_up)
            self._next_deadline = min(self._next_deadline, job.deadline)
            answers: dict[int, Answer] = {}
            for place, row in enumerate(job.rows):
                self._number += 1
                # as if each request had a queue of its own, of which one row is taken in turn
                key = (job.priority, self._clock + place, self._number)
                self._tickets[row] = _Ticket(job, key, answers, row.options.threshold)
                self._lane(row).new.put(key, row)
            self._changed.notify_all()

    def close(self, timeout: float | None = None) -> bool:
        """
        Take no more jobs, and finish those that are there; tell whether all were in time. Others are given up, and so
        are threads that don't end, because the executor does not answer.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._tickets, timeout)
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(None if timeout is None else max(end - time.monotonic(), LAST_SECONDS))
        self.executor.close()
        for ticket in list(self._tickets.values()):
            _settle(ticket.job.future, error=ClosedError("the server was shut down before this was done"))
        return done

    @property
    def waiting(self) -> int:
        """Count rows that were not read yet."""
        return len(self._direct) + len(self._thinkers) + self._preparing

    @property
    def thinking(self) -> int:
        """Count rows that think."""
        return len(self._at_work)

    @property
    def is_healthy(self) -> bool:
        """Tell whether the executor is at work, and did not fail several times in a row."""
        return self._threads[0].is_alive() and self._failures < FAILURES

    # Threads that prepare

    def _prepare(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._lane_to_prepare() is not None)
                self._changed.wait_for(self._is_worth_preparing, GATHER_SECONDS)
                lane = self._lane_to_prepare()
                if self._ended:
                    return
                if lane is None:  # another thread took them
                    continue
                rows = lane.new.alike(PREPARED_AT_ONCE, PREPARED_AT_ONCE)
                rows = rows[:1] if rows and rows[0].has_media else rows
                lane.new.take(rows)
                self._preparing += len(rows)
            made = self._prepared(rows) if rows else []
            with self._changed:
                self._preparing -= len(rows)
                for row, one in zip(rows, made, strict=True):
                    ticket = self._tickets[row]
                    if self._is_given_up(row):
                        del self._tickets[row]
                    elif isinstance(one, Prepared):
                        row.prepared = one
                        if self._is_late(row, time.monotonic()):
                            row.options = replace(row.options, reasoning="never")
                        self._lane(row).ready.put(ticket.key, row)
                    else:
                        self._fail(row, one)
                self._changed.notify_all()

    def _lane_to_prepare(self) -> _Lane | None:
        """Find rows to prepare: direct ones first, and few ahead: they take memory, and many at once cost less."""
        for lane in self._lanes:
            enough = len(lane.ready) >= PREPARED_ROWS * self.batch_size
            if len(lane.new) and not enough and lane.ready.tokens < PREPARED_BATCHES * self.max_batch_tokens:
                return lane
        return None

    def _is_worth_preparing(self) -> bool:
        """Tell whether there is no reason to wait for more rows: one call for many costs less than one for each."""
        many = any(len(lane.new) >= PREPARED_AT_ONCE for lane in self._lanes)
        return self._ended or self._idle or many

    def _prepared(self, rows: Sequence[Row]) -> list[Prepared | Exception]:
        """Prepare rows; those that the executor fails over are tried alone."""
        try:
            return [
                RefusedError(row.index, str(one)) if isinstance(one, ValueError) else one
                for row, one in zip(rows, self.executor.prepare(rows), strict=True)
            ]
        except Exception:
            if len(rows) > 1:
                return [one for row in rows for one in self._prepared([row])]
            logger.exception("an input could not be prepared")
            return [ExecutorError("the server failed over an input")]

    # The thread of the executor

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._turn()
        except Exception:
            logger.exception("the scheduler ended")
            with self._changed:
                self._closed = self._ended = True
                for row in list(self._tickets):
                    self._fail(row, ExecutorError("the server failed"))

    def _wait_for_work(self) -> bool:
        with self._changed:
            if not self._has_work():
                self._idle = True
                self._changed.notify_all()
                self._changed.wait_for(self._has_work)
                self._idle = False
            return not self._ended

    def _has_work(self) -> bool:
        return bool(self._ended or self._at_work or self._direct.ready or self._thinkers.ready)

    def _turn(self) -> None:
        """Read up to `batch_size` direct rows and as many others, and let those that think go on by a step."""
        for lane in self._lanes:
            left = self.batch_size
            while left == self.batch_size or (left > 0 and len(lane.ready) >= self.batch_size):  # few may become more
                self._release()  # reading took its time
                rows = self._next_rows(lane, self.batch_size)
                if not rows:
                    break
                self._read(rows)
                left -= len(rows)
        if self._at_work:
            self._step()

    def _release(self) -> None:
        """Let go of rows that nobody waits for, and of those whose time is up; they get the vector they have."""
        now = time.monotonic()
        is_late = now >= self._next_deadline
        if not self._some_given_up and not is_late:
            return
        leaving = [row for row in self._at_work if self._is_given_up(row) or self._is_late(row, now)]
        if leaving:
            try:
                stopped = self.executor.stop(leaving)
            except Exception:
                logger.exception("rows could not be stopped")
                self._restart()
            else:
                self._finish(stopped)
        with self._changed:
            self._drop_given_up()
            if is_late:
                self._hurry(now)

    def _hurry(self, now: float) -> None:
        """Let rows that are late before they were read be read directly."""
        for row in self._thinkers.drop(lambda row: self._is_late(row, now)):
            row.options = replace(row.options, reasoning="never")
            queue = self._direct.new if row.prepared is None else self._direct.ready
            queue.put(self._tickets[row].key, row)
        deadlines = (ticket.job.deadline for ticket in self._tickets.values())
        self._next_deadline = min((deadline for deadline in deadlines if deadline > now), default=math.inf)

    def _drop_given_up(self) -> None:
        if self._some_given_up:
            self._some_given_up = False
            for lane in self._lanes:
                for row in lane.drop(self._is_given_up):
                    del self._tickets[row]

    def _note_given_up(self, future: Future[list[Answer]]) -> None:
        if future.cancelled() or future.exception() is not None:
            self._some_given_up = True

    def _next_rows(self, lane: _Lane, size: int) -> list[Row]:
        """Take what is read next from a lane; of a row that may have made the executor fail, nothing else."""
        with self._changed:
            if lane is self._thinkers:
                if any(self._tickets[row].alone for row in self._at_work):
                    return []
                size = min(size, self.executor.room)
            if not size:
                return []
            first = lane.ready.first()
            if first is None:
                return []
            if self._tickets[first[1]].alone:
                rows = [] if self._at_work else [first[1]]
            else:
                rows = lane.ready.alike(size, self.max_batch_tokens, self.executor.fixed_cost)
                rows = [row for row in rows if not self._tickets[row].alone]
            lane.ready.take(rows)
            if rows:
                self._clock = max(self._clock, first[0][1])
                self._changed.notify_all()
            return rows

    def _read(self, rows: list[Row]) -> None:
        """Read rows; where that fails, halves of them, down to the row that it is about."""
        try:
            answered = self.executor.read(rows)
        except ThinkingLostError:
            logger.exception("the executor lost the rows that think")
            self._at_work |= dict.fromkeys(rows)
            self._restart()
        except Exception:
            logger.exception("a batch could not be read")
            if len(rows) > 1:
                self._read(rows[: len(rows) // 2])
                self._read(rows[len(rows) // 2 :])
                return
            self._failures += 1
            self._fail(rows[0], ExecutorError("the server failed over an input"))
        else:
            self.observer.batch_read(rows)
            for row in rows:
                row.prepared = None
            done = {row for row, _ in answered}
            with self._changed:
                self._at_work |= dict.fromkeys(row for row in rows if row not in done)
            self._finish(answered)

    def _step(self) -> None:
        self.observer.stepped(len(self._at_work))
        try:
            answered = self.executor.step()
        except Exception:
            logger.exception("a step of thinking failed")
            self._restart()
        else:
            self._finish(answered)

    def _restart(self) -> None:
        """Begin all rows at work again, each alone: the one that the executor failed over fails the second time."""
        self._failures += 1
        self.executor.reset()
        with self._changed:
            rows, self._at_work = list(self._at_work), {}
            for row in rows:
                ticket = self._tickets[row]
                if ticket.alone:
                    self._fail(row, ExecutorError("the server failed over an input"))
                else:
                    ticket.alone, row.prepared = True, None
                    self._some_given_up = True  # some of them may be, and were not looked at
                    self._thinkers.new.put(ticket.key, row)
            self._changed.notify_all()

    # What becomes of rows

    def _finish(self, outcomes: Iterable[Outcome]) -> None:
        now = time.monotonic()
        with self._changed:
            count = 0
            for row, answer in outcomes:
                if isinstance(answer, Exception):
                    self._give_up(row, answer)
                    continue
                if not answer.stopped:
                    self._failures = 0
                self._at_work.pop(row, None)
                ticket = self._tickets.pop(row)
                if not row.may_think and answer.gate_prob >= ticket.threshold:
                    answer = replace(answer, stopped=True)  # it was late before its turn came
                count += 1
                job = ticket.job
                ticket.answers[row.index] = answer
                if job.future.done():
                    continue
                self.observer.answered(row, answer, now - job.arrived)
                if len(ticket.answers) == len(job.rows):
                    _settle(job.future, [ticket.answers[one.index] for one in job.rows])
            if count:
                self._measure(count, now)
                self._changed.notify_all()

    def _give_up(self, row: Row, error: Exception) -> None:
        """Fail a row that the executor refuses, or that it failed over."""
        if isinstance(error, ValueError):
            self._fail(row, RefusedError(row.index, str(error)))
        else:
            logger.error("the executor failed over an input", exc_info=error)
            self._failures += 1
            self._fail(row, ExecutorError("the server failed over an input"))

    def _fail(self, row: Row, error: Exception) -> None:
        with self._changed:
            self._at_work.pop(row, None)
            _settle(self._tickets.pop(row).job.future, error=error)
            self._changed.notify_all()

    # Questions

    @property
    def _lanes(self) -> tuple[_Lane, _Lane]:
        return self._direct, self._thinkers

    def _lane(self, row: Row) -> _Lane:
        return self._thinkers if row.may_think else self._direct

    def _is_given_up(self, row: Row) -> bool:
        return self._tickets[row].job.future.done()

    def _is_late(self, row: Row, now: float) -> bool:
        return self._tickets[row].job.deadline <= now

    def _measure(self, count: int, now: float) -> None:
        """Follow how many rows are answered per second, over about ten seconds."""
        seconds = max(now - self._rated, 1e-3)
        weight = 1 - math.exp(-seconds / 10)
        self._rate += weight * (count / seconds - self._rate)
        self._rated = now

    def _retry_after(self) -> int:
        """Estimate in how many seconds half of those that wait will have been read."""
        return min(max(math.ceil(self.waiting / 2 / max(self._rate, 0.1)), 1), LONGEST_WAIT)


def _settle(future: Future[list[Answer]], answers: list[Answer] | None = None, error: Exception | None = None) -> None:
    with suppress(InvalidStateError):  # it was given up, or had an error before
        if error is None:
            future.set_result(answers or [])
        else:
            future.set_exception(error)
