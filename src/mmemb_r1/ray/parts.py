"""Draw rationales (the prior) and score them (the posterior) on Ray: each worker takes a part of the shards."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.ray.cluster import RETRIES, WorkerSlots, connected, slots
from mmemb_r1.ray.media import absolute

if TYPE_CHECKING:
    from mmemb_r1.training.rationales.summary import Summary
    from mmemb_r1.training.selection.config import SelectionOptions
    from mmemb_r1.training.selection.report import Report
    from mmemb_r1.training.settling.faults import SettleOptions

Part = tuple[int, int]

logger = logging.getLogger(__name__)


def draw_rationales(
    pairs: str | Path,
    pool: str | Path,
    output: str | Path,
    *,
    read: Mapping[str, Any] | None = None,
    only: Sequence[str] | None = None,
    samples: int | None = None,
    workers: int | None = None,
    threads: int = 1,
    gpus: float | None = None,
    address: str | None = None,
    **options: Any,
) -> Summary:
    """
    Draw the rationales of a pairs table with processes on Ray, into a folder that `read_rationales` reads.

    The shards are those of `mmemb_r1.training.draw_rationales`, with the same rationales, and each process draws its
    part of them. One that is killed is replaced; what it finished stays, and the same call goes on where a killed one
    stopped. All processes read the whole table, once.

    Args:
        pairs: the table, as `read_pairs` takes it, and visible to all machines.
        pool: the file of the pool, see `load_pool`.
        output: the folder, which all machines see.
        read: further arguments of `read_pairs`.
        only, samples: of `load_pool`.
        workers: processes, each of which loads the workers of the pool. Default: as many as there is room for.
        threads, gpus, address: as for `embed_dataset`.
        **options: of `mmemb_r1.training.draw_rationales`; `max_failures` is of each process.

    Returns:
        What all processes did.

    Raises:
        ValueError: as `mmemb_r1.training.draw_rationales`; a `WorkerError` is a `ValueError` here.
        OSError: if the process of a part died several times.
        ImportError: if Ray is not installed.
    """
    from mmemb_r1.training.rationales.summary import Summary, WorkerSummary

    _check_options(options)
    given: list[Any] = [absolute(str(pairs)), absolute(str(pool)), str(Path(output).expanduser().absolute())]
    given += [dict(read or {}), only, samples, options]
    with connected(address, cpus=None if workers is None else workers * threads) as ray:
        size = slots(ray, workers, threads, gpus)
        summaries = _run_parts(_draw_part, given, size, size.workers)
    whole = Summary(aborted=next((one.aborted for one in summaries if one.aborted), None))
    merged: dict[str, WorkerSummary] = {}
    for one in (worker for summary in summaries for worker in summary.workers):
        into = merged.setdefault(one.name, WorkerSummary(one.name))
        for name in ("rows", "answers", "drawn", "skipped"):
            setattr(into, name, getattr(into, name) + getattr(one, name))
        into.failures += one.failures
    whole.workers += merged.values()
    return whole


def _draw_part(
    part: Part,
    pairs: str,
    pool: str,
    output: str,
    read: dict[str, Any],
    only: Sequence[str] | None,
    samples: int | None,
    options: dict[str, Any],
) -> Summary:
    from mmemb_r1.training.rationales.draw import draw_rationales
    from mmemb_r1.training.rationales.pool import load_pool
    from mmemb_r1.training.tables import PAIR_COLUMNS, read_pairs

    workers = load_pool(Path(pool), only=only, samples=samples)
    table = read_pairs(pairs, PAIR_COLUMNS, **read)
    return draw_rationales(table, workers, Path(output), part=part, progress=False, **options)


def select_rationales(
    pairs: str | Path,
    rationales: str | Path,
    evaluator: str | Path,
    output: str | Path,
    options: SelectionOptions | None = None,
    *,
    read: Mapping[str, Any] | None = None,
    kind: str | None = None,
    evaluator_options: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    shard_size: int = 64,
    settling: SettleOptions | None = None,
    workers: int | None = None,
    threads: int = 1,
    gpus: float | None = None,
    address: str | None = None,
) -> Report:
    """
    Score rationales with processes on Ray, each with the evaluator, and keep those that help their pair.

    Scores, and what is selected by them, are those of `mmemb_r1.training.select_rationales`; each process scores its
    part of the shards. One that is killed is replaced; what it finished stays, and the same call goes on where a
    killed one stopped.

    Args:
        pairs, rationales: the tables, visible to all machines.
        evaluator: a folder that all machines see, or a Hub id that is in the cache of each of them.
        output: the folder, which all machines see.
        options, batch_size, shard_size, settling: of `mmemb_r1.training.select_rationales`.
        read: further arguments of `read_pairs`.
        kind, evaluator_options: of `load_evaluator`, without a device.
        workers: processes. Default: as many as there is room for.
        threads, gpus, address: as for `embed_dataset`.

    Returns:
        The report.

    Raises:
        ValueError: as `mmemb_r1.training.select_rationales`.
        OSError: if the process of a part died several times.
        ImportError: if Ray is not installed.
    """
    given: list[Any] = [absolute(str(pairs)), absolute(str(rationales)), absolute(str(evaluator))]
    given += [str(Path(output).expanduser().absolute())]
    asked = {"options": options, "batch_size": batch_size, "shard_size": shard_size, "settling": settling}
    with connected(address, cpus=None if workers is None else workers * threads) as ray:
        size = slots(ray, workers, threads, gpus)
        told = dict(evaluator_options or {})
        if kind != "vllm":  # which finds its devices itself
            told["device"] = size.device
        given += [dict(read or {}), kind, told, asked]
        _run_parts(_score_part, given, size, size.workers)
        (report,) = _run_parts(_score_part, given, size, 1)  # nothing is left to be scored
    return report


def _score_part(
    part: Part,
    pairs: str,
    rationales: str,
    evaluator: str,
    output: str,
    read: dict[str, Any],
    kind: str | None,
    told: dict[str, Any],
    asked: dict[str, Any],
) -> Report | None:
    from mmemb_r1.training.rationales.table import read_rationales
    from mmemb_r1.training.selection.evaluator import load_evaluator
    from mmemb_r1.training.selection.select import select_rationales
    from mmemb_r1.training.tables import PAIR_COLUMNS, read_pairs

    table, drawn = read_pairs(pairs, PAIR_COLUMNS, **read), read_rationales(rationales)
    judge = load_evaluator(evaluator, kind, **told)
    return select_rationales(table, drawn, judge, Path(output), part=part, progress=False, **asked)


def _check_options(options: Mapping[str, Any]) -> None:
    for name in ("part", "progress"):
        if name in options:
            raise ValueError(f"{name} can't be chosen here: the processes on Ray are the parts. Leave it out.")


def _run_parts(function: Callable[..., Any], given: Sequence[Any], size: WorkerSlots, count: int) -> list[Any]:
    """
    Call `function(part, *given)` for each of `count` parts, each in a process; the first error ends all.

    Processes are actors, which are killed, and no tasks, which would be cancelled: the driver ends without a word,
    by a check of Ray's own (2.60), when a task is cancelled at the moment at which its answer comes.
    """
    import ray
    from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError

    process = ray.remote(_Process).options(**size.options())
    actors: dict[int, Any] = {}
    waiting: dict[Any, int] = {}
    begun, results = Counter[int](), {}

    def begin(number: int) -> None:
        begun[number] += 1
        actors[number] = process.remote()
        waiting[actors[number].call.remote(function, size.threads, (number, count), list(given))] = number

    try:
        for number in range(1, count + 1):
            begin(number)
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            number = waiting.pop(done)
            try:
                fault, value = ray.get(done)
            except (RayActorError, WorkerCrashedError, OutOfMemoryError) as error:
                _check_begun(begun[number], f"the process of part {number} of {count}", error)
                begin(number)
                continue
            if fault is not None:
                raise {"os": OSError, "import": ImportError, "value": ValueError}[fault](value)
            results[number] = value
            ray.kill(actors.pop(number))  # what it had is for a part that waits
    finally:
        for actor in actors.values():
            ray.kill(actor)
    return [results[number] for number in sorted(results)]


def _check_begun(times: int, what: str, error: Exception) -> None:
    """Refuse to begin again what was begun too often, else warn that it is."""
    if times > RETRIES:
        raise OSError(
            f"{what} died {times} times. What was finished is kept. If it was memory, give each worker more; then "
            "make the same call again."
        ) from error
    logger.warning("%s died, and another goes on with what it had. Ray's logs say why.", what)


class _Process:
    """Call a function; what users can correct is an answer, and not an exception, which Ray would wrap."""

    def call(self, function: Callable[..., Any], threads: int, part: Part, given: list[Any]) -> tuple[str | None, Any]:
        import torch

        torch.set_num_threads(threads)
        try:
            return None, function(part, *given)
        except OSError as error:
            return "os", str(error)
        except ImportError as error:
            return "import", str(error)
        except ValueError as error:
            return "value", str(error)
