"""Say why a job gets no vectors."""

from __future__ import annotations


class QueueFullError(Exception):
    """Say that no more rows are taken now; `retry_after` is in how many seconds there may be room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class ClosedError(Exception):
    """Say that no more rows are taken, because the scheduler was closed."""


class ExecutorError(Exception):
    """Say that the executor failed over a row; the reason is in the log."""


class RefusedError(Exception):
    """Say that one of a job's inputs can't be embedded: its `index`, and the `reason`."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"Input {index} can't be embedded: {reason}")
        self.index, self.reason = index, reason
