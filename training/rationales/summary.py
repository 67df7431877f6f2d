"""Count what a run of drawing rationales did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class WorkerSummary:
    """
    Counts what one worker did in a run.

    Args:
        name: the worker's.
        rows: rows written to the table, those that record a failure among them.
        answers: rationales asked for; one serves all pairs that have an input in common.
        failures: reason -> how many of the answers failed for it.
        drawn: shards written.
        skipped: shards that were there already.
    """

    name: str
    rows: int = 0
    answers: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    drawn: int = 0
    skipped: int = 0


@dataclass
class Summary:
    """
    Counts what a run did.

    Args:
        workers: in the order of the pool, those that began.
        aborted: why the run stopped before its end, or `None`.
    """

    workers: list[WorkerSummary] = field(default_factory=list)
    aborted: str | None = None

    def lines(self, reasons: int = 5) -> Iterator[str]:
        """
        Describe the run in lines of text, with the most frequent `reasons` of each worker's failures.

        >>> oracle = WorkerSummary("oracle", rows=6, answers=4, failures=Counter({"too dark": 1}), drawn=2, skipped=1)
        >>> print(*Summary([oracle]).lines(), sep="\\n")
        oracle: 6 rows; shards: 2 drawn, 1 there before; 1 of 4 answers failed
             1 x too dark
        """
        for worker in self.workers:
            failed = worker.failures.total()
            shards = f"{worker.drawn} drawn" + (f", {worker.skipped} there before" if worker.skipped else "")
            parts = [f"{worker.name}: {worker.rows} rows", f"shards: {shards}"]
            parts += [f"{failed} of {worker.answers} answers failed"] if failed else []
            yield "; ".join(parts)
            for reason, count in worker.failures.most_common(reasons):
                yield f"{count:6} x {reason}"
            if len(worker.failures) > reasons:
                yield f"       and {len(worker.failures) - reasons} other reasons"
        if self.aborted:
            yield self.aborted
