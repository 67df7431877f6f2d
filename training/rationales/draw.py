"""Draw the rationales of a pairs table from a pool of workers, in shards, so that a killed run can be resumed."""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.content import content_key, stored_digest
from mmemb_r1.progress import progress_bar
from mmemb_r1.runs import check_run, record_run
from mmemb_r1.training.rationales.summary import Summary, WorkerSummary
from mmemb_r1.training.rationales.table import (
    ERROR,
    check_name,
    rationale_shard_path,
    read_rationale_shard,
    write_rationale_shard,
)
from mmemb_r1.training.rationales.worker import (
    SIDES,
    Failure,
    Rationale,
    RationaleRequest,
    RationaleWorker,
    WorkerError,
)
from mmemb_r1.training.tables import StoredInputs, check_pairs, stored_column

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.progress import Progress


@dataclass(frozen=True)
class DistinctInput:
    """An input that one or several pairs have on a side: its digest, first row, and the ids of these pairs."""

    side: str
    digest: bytes  # of how the first row stores it
    row: int
    pair_ids: tuple[str, ...]


def distinct_inputs(pairs: Dataset, sides: Sequence[str] = SIDES) -> list[DistinctInput]:
    """List the inputs to draw for, side by side, in the order of their first rows."""
    ids = stored_column(pairs, "pair_id").to_pylist()
    found = []
    for side in sides:
        inputs, rows_of = StoredInputs(pairs, side), defaultdict[bytes, list[int]](list)
        for row, value in enumerate(inputs):
            rows_of[content_key(value)].append(row)
        found += [
            DistinctInput(side, stored_digest(inputs[rows[0]]), rows[0], tuple(ids[row] for row in rows))
            for rows in rows_of.values()
        ]
    return found


def rationale_seed(seed: int, worker: str, side: str, digest: bytes, sample: int) -> int:
    """Derive the seed (31 bits) of one rationale. It does not depend on the order of drawing.

    >>> rationale_seed(0, "oracle", "query", b"...", 1)
    1370487967
    """
    text = json.dumps([seed, worker, side, digest.hex(), sample])
    return int.from_bytes(sha256(text.encode()).digest()[:4], "big") >> 1


def table_digests(inputs: Sequence[DistinctInput]) -> dict[str, str]:
    """Digest the content of a pairs table, side by side, whatever file or order of columns holds it."""
    content: dict[str, Any] = {}
    for one in inputs:
        line = json.dumps([one.digest.hex(), one.pair_ids])
        content.setdefault(one.side, blake2b(digest_size=16)).update(line.encode())
    return {side: value.hexdigest() for side, value in content.items()}


DEFAULT_SHARD_SIZE = 64
Answers = list[Rationale | Failure]


def draw_rationales(
    pairs: Dataset,
    workers: Sequence[RationaleWorker],
    output: Path,
    *,
    sides: Sequence[str] = SIDES,
    seed: int = 0,
    shard_size: int = DEFAULT_SHARD_SIZE,
    max_failures: int | None = None,
    part: tuple[int, int] = (1, 1),
    retry_failed: bool = False,
    progress: bool | None = None,
) -> Summary:
    """
    Draw rationales for every input of a pairs table and write them to a folder that `read_rationales` reads.

    An input that several pairs have in common is drawn for once. Shards that are there already are not drawn again:
    the same call goes on where a killed one stopped, and only the workers draw that are new in the pool.

    Workers that have `draw_each` (see `RationaleWorker`), such as servers, draw side by side; the others one after
    another, beside them. What is drawn depends on none of this.

    Args:
        pairs: the pairs table, with the columns `pair_id` and the sides.
        workers: the pool.
        output: the folder.
        sides: `"query"`, `"target"` or both. Default: both.
        seed: of the whole run.
        shard_size: inputs per file of a worker. A killed run loses the files that were not complete: one of each
            worker, and of a server those of the inputs that it was asked at once.
        max_failures: stop when more answers than this failed in this run. The unfinished shard is not written, and is
            drawn again by the next run. Default: never stop.
        part: `(i, n)`: draw the i-th of n parts of the shards, for n machines on one shared folder. Default: all.
        retry_failed: also draw again what failed in the shards that are there.
        progress: show a bar on standard error, if that is a terminal; without one, progress is logged every 30 seconds
            (`mmemb_r1.progress`, level INFO). Default: `True`.

    Raises:
        ValueError: if an argument, a worker or the table can't be used; or if `output` was begun with another table,
            seed, choice of sides or shard size, or with a worker of this name that is defined otherwise.
        WorkerError: if a worker can't work at all, or breaks. Finished shards are kept.
    """
    sides = _checked(sides, shard_size, max_failures, part)
    _check_workers(workers)
    check_pairs(pairs, ("pair_id", *sides))
    inputs = distinct_inputs(pairs, sides)
    run = _Run(
        output=Path(output),
        columns={side: StoredInputs(pairs, side) for side in sides},
        shards=[inputs[start : start + shard_size] for start in range(0, len(inputs), shard_size)],
        facts={"pairs": table_digests(inputs), "sides": list(sides), "seed": seed, "shard_size": shard_size},
        seed=seed,
        max_failures=max_failures,
        part=part,
        retry_failed=retry_failed,
    )
    for worker in workers:
        run.check(worker, check_run)
    with progress_bar(progress) as bar:
        try:
            run.draw_all(workers, bar)
        except _TooManyFailures as error:
            run.summary.aborted = str(error)
    order = [worker.name for worker in workers]
    run.summary.workers.sort(key=lambda worker: order.index(worker.name))
    return run.summary


def _checked(
    sides: Sequence[str], shard_size: int, max_failures: int | None, part: tuple[int, int]
) -> tuple[str, ...]:
    """Check the arguments, and return the sides in their order."""
    if not sides or (unknown := [side for side in sides if side not in SIDES]):
        raise ValueError(f"sides: {unknown[0] if sides else 'none'!r} is not known; allowed: {', '.join(SIDES)}.")
    if shard_size < 1:
        raise ValueError(f"shard_size is {shard_size}; at least 1 is needed.")
    if max_failures is not None and max_failures < 0:
        raise ValueError(f"max_failures is {max_failures}; allowed: 0, any more, or None for no limit.")
    if not 1 <= part[0] <= part[1]:
        raise ValueError(f"part is {part[0]}/{part[1]}; allowed: i/n with i from 1 to n.")
    return tuple(side for side in SIDES if side in sides)


def _check_workers(workers: Sequence[RationaleWorker]) -> None:
    if not workers:
        raise ValueError("there are no workers; give at least one.")
    for name, count in Counter(worker.name for worker in workers).items():
        check_name(name)
        if count > 1:
            raise ValueError(f"{count} workers have the name {name!r}; give each its own.")
    for worker in workers:
        for option in ("num_samples", "batch_size"):
            if getattr(worker, option) < 1:
                raise ValueError(
                    f"the worker {worker.name!r} has {option}={getattr(worker, option)}; at least 1 is needed."
                )


class _TooManyFailures(Exception):
    """More answers failed than `max_failures`."""


class _Stopped(Exception):
    """Another worker ended the run."""


@dataclass
class _Run:
    output: Path
    columns: Mapping[str, StoredInputs]
    shards: Sequence[Sequence[DistinctInput]]
    facts: Mapping[str, Any]
    seed: int
    max_failures: int | None
    part: tuple[int, int]
    retry_failed: bool
    summary: Summary = field(default_factory=Summary)
    failed: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)
    errors: list[BaseException] = field(default_factory=list)  # of workers, the first one first
    lock: threading.Lock = field(default_factory=threading.Lock)  # around what the threads of workers share

    def draw_all(self, workers: Sequence[RationaleWorker], bar: Progress) -> None:
        """Draw and write what is missing; the first error of a worker stops all of them."""
        beside = [worker for worker in workers if hasattr(worker, "draw_each")]
        with ThreadPoolExecutor(max(1, len(beside)), thread_name_prefix="rationales") as threads:
            futures = [threads.submit(self.draw, worker, bar) for worker in beside]
            done = False
            try:
                for worker in workers:
                    if worker not in beside:
                        self.draw(worker, bar)
                for future in as_completed(futures):
                    future.result()
                done = True
            except _Stopped:
                raise self.errors[0] from None
            finally:
                if not done:
                    self.stopped.set()
                    for worker in beside:
                        _close(worker)

    def draw(self, worker: RationaleWorker, bar: Progress) -> None:
        """Draw and write the shards of one worker that are missing, and let go of what it occupies."""
        try:
            self._draw(worker, bar)
            _close(worker)
        except _Stopped:
            raise
        except BaseException as error:
            self.errors.append(error)
            self.stopped.set()
            raise

    def check(self, worker: RationaleWorker, how: Callable[..., Any]) -> None:
        """Record this run and this worker in the folder (`record_run`), or just look (`check_run`)."""
        how(self.output / "run.json", self.facts)
        how(
            self.output / "workers" / f"{worker.name}.json",
            {"definition": worker.definition, "num_samples": worker.num_samples},
            what=f"the worker {worker.name!r} in {self.output}",
            hint="Give the changed worker another name, or undo the change.",
        )

    def _draw(self, worker: RationaleWorker, bar: Progress) -> None:
        summary = WorkerSummary(worker.name)
        with self.lock:
            self.summary.workers.append(summary)
        first, step = self.part
        mine = {index: self._missing(worker, index) for index in range(first - 1, len(self.shards), step)}
        todo = {index: missing for index, missing in mine.items() if missing}
        summary.skipped = len(mine) - len(todo)
        if not todo:
            return
        task = bar.add_task(worker.name, total=sum(map(len, todo.values())) * worker.num_samples)
        drawn: dict[int, dict[DistinctInput, Answers]] = defaultdict(dict)  # of shards that are not complete
        ask = self._ask_each if hasattr(worker, "draw_each") else self._ask
        with closing(ask(worker, todo)) as answered:
            for index, one, answers in answered:
                self._check_answers(worker, answers)
                self._count(summary, answers)
                drawn[index][one] = answers
                bar.advance(task, worker.num_samples)
                if len(drawn[index]) == len(todo[index]):
                    self._write(worker, index, drawn.pop(index), summary)

    def _write(
        self, worker: RationaleWorker, index: int, answers: Mapping[DistinctInput, Answers], summary: WorkerSummary
    ) -> None:
        rows = list(self._rows(worker, index, answers))
        with self.lock:
            self.check(worker, record_run)  # not before: settings may be corrected until there are results
        write_rationale_shard(rationale_shard_path(self.output, worker.name, index), rows)
        summary.drawn += 1
        summary.rows += len(rows)

    def _missing(self, worker: RationaleWorker, index: int) -> Sequence[DistinctInput]:
        """List the inputs of a shard that are to be drawn for."""
        path = rationale_shard_path(self.output, worker.name, index)
        if not path.exists():
            return self.shards[index]
        rows = read_rationale_shard(path) if self.retry_failed else []
        failed = {(row["side"], row["pair_id"]) for row in rows if row["finish_reason"] == ERROR}
        return [one for one in self.shards[index] if (one.side, one.pair_ids[0]) in failed]

    def _ask(
        self, worker: RationaleWorker, todo: Mapping[int, Sequence[DistinctInput]]
    ) -> Generator[tuple[int, DistinctInput, Answers]]:
        """Ask about the inputs of shards in batches; yield a shard's index, an input and the answers."""
        for index, inputs in todo.items():
            for start in range(0, len(inputs), worker.batch_size):
                if self.stopped.is_set():
                    raise _Stopped
                batch = inputs[start : start + worker.batch_size]
                with _as_worker_error(worker, f"in its shard {index}"):
                    drawn = worker.draw([self._request(worker, one) for one in batch])
                if len(drawn) != len(batch):
                    raise WorkerError(f"the worker {worker.name!r} answered {len(drawn)} of {len(batch)} inputs.")
                for one, answers in zip(batch, drawn, strict=True):
                    yield index, one, answers

    def _ask_each(
        self, worker: Any, todo: Mapping[int, Sequence[DistinctInput]]
    ) -> Generator[tuple[int, DistinctInput, Answers]]:
        """Like `_ask`, of a worker that reads as many inputs as it wants and answers them in any order."""
        asked: dict[int, tuple[int, DistinctInput]] = {}

        def requests() -> Iterator[RationaleRequest]:
            inputs = ((index, one) for index, missing in todo.items() for one in missing)
            for number, (index, one) in enumerate(inputs):
                if self.stopped.is_set():
                    return
                asked[number] = index, one
                yield self._request(worker, one)

        missing = sum(map(len, todo.values()))
        with closing(worker.draw_each(requests())) as drawn:
            while missing:
                with _as_worker_error(worker, f"with {missing} inputs left"):
                    number, answers = next(drawn, (None, []))
                if self.stopped.is_set():
                    raise _Stopped
                if number not in asked:
                    what = f"ended with {missing} inputs left"
                    if number is not None:
                        what = f"answered input {number!r} twice, or was never asked it"
                    raise WorkerError(f"the worker {worker.name!r} {what}; it has to answer each input once.")
                missing -= 1
                yield *asked.pop(number), answers

    def _request(self, worker: RationaleWorker, one: DistinctInput) -> RationaleRequest:
        return RationaleRequest(self.columns[one.side][one.row], one.side, self._seeds(worker, one))

    @staticmethod
    def _check_answers(worker: RationaleWorker, answers: Answers) -> None:
        if len(answers) not in (0, worker.num_samples):
            raise WorkerError(
                f"the worker {worker.name!r} gave {len(answers)} answers to an input; it has to give "
                f"{worker.num_samples} to each, or none."
            )

    def _seeds(self, worker: RationaleWorker, one: DistinctInput) -> tuple[int, ...]:
        samples = range(worker.num_samples)
        return tuple(rationale_seed(self.seed, worker.name, one.side, one.digest, sample) for sample in samples)

    def _count(self, summary: WorkerSummary, answers: Answers) -> None:
        for answer in answers:
            summary.answers += 1
            if isinstance(answer, Failure):
                summary.failures[answer.reason] += 1
                with self.lock:
                    self.failed += 1
                    failed = self.failed
                if self.max_failures is not None and failed > self.max_failures:
                    raise _TooManyFailures(
                        f"stopped: more answers failed than the {self.max_failures} that are allowed. The last one, "
                        f"of the worker {summary.name!r}: {answer.reason.rstrip('.')}. Finished shards are kept."
                    )

    def _rows(
        self, worker: RationaleWorker, index: int, answers: Mapping[DistinctInput, Answers]
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of a shard: the new answers, and what its file holds already of the other inputs."""
        path = rationale_shard_path(self.output, worker.name, index)
        kept: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in read_rationale_shard(path) if path.exists() else []:
            kept.setdefault((row["side"], row["pair_id"]), []).append(row)
        for one in self.shards[index]:
            for pair_id in one.pair_ids:
                if one not in answers:
                    yield from kept.get((one.side, pair_id), [])
                    continue
                for sample, (seed, answer) in enumerate(zip(self._seeds(worker, one), answers[one], strict=False)):
                    name = {"pair_id": pair_id, "side": one.side, "worker": worker.name, "sample": sample}
                    yield {**name, "seed": seed, **_outcome(answer)}


def _outcome(answer: Rationale | Failure) -> dict[str, Any]:
    if isinstance(answer, Failure):
        return {"text": None, "num_tokens": None, "finish_reason": ERROR, "error": _storable(answer.reason)}
    return {
        "text": _storable(answer.text),
        "num_tokens": answer.num_tokens,
        "finish_reason": answer.finish_reason,
        "error": None,
    }


def _storable(text: str) -> str:
    """Replace half a character, in which a truncated answer may end: it can't be written as UTF-8.

    >>> _storable("flag \\ud83c")
    'flag ?'
    """
    return text.encode("utf-8", "replace").decode("utf-8")


def _close(worker: RationaleWorker) -> None:
    if close := getattr(worker, "close", None):
        close()


@contextmanager
def _as_worker_error(worker: RationaleWorker, where: str) -> Iterator[None]:
    """Turn any error of a worker into a `WorkerError` that names it: a worker may be anyone's code."""
    try:
        yield
    except WorkerError:
        raise
    except Exception as error:
        raise WorkerError(
            f"the worker {worker.name!r} broke {where}: {type(error).__name__}: {error}. Finished shards "
            "are kept; the same call goes on after them."
        ) from error
