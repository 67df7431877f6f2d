"""Make a thinker of a worker: what draws rationales for training writes them for the inputs of an embedder, too."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from mmemb_r1.thinker import NoThought, Thought
from mmemb_r1.training.rationales.pool import make_worker
from mmemb_r1.training.rationales.worker import Failure, Rationale, RationaleRequest, RationaleWorker

NAME = "thinker"  # of a worker whose keys give none
GREEDY = 0.0  # temperature of a worker whose keys give none: the same input gets the same vector
SEEDS = (0,)  # of every input: its rationale does not depend on where it stands


class WorkerThinker:
    """
    Let a worker write the rationales of inputs, one of each; one call at a time.

    Args:
        worker: of any kind. It sees an input as a query.
        takes_budget: whether its `max_tokens` is that of each call. Default: it keeps its own.
    """

    def __init__(self, worker: RationaleWorker, takes_budget: bool = False) -> None:
        self.worker, self.takes_budget = worker, takes_budget
        self._lock = threading.Lock()

    @property
    def definition(self) -> dict[str, Any]:
        """Tell all that determines the rationales, but for a budget that each call gives."""
        passed_over = {"max_tokens"} if self.takes_budget else set()
        return {key: value for key, value in self.worker.definition.items() if key not in passed_over}

    def think(self, inputs: Iterable[dict[str, Any]], max_tokens: int) -> Iterator[tuple[int, Thought | NoThought]]:
        """
        Ask the worker about inputs, as it has room for them; see [`~mmemb_r1.thinker.Thinker`].

        Raises:
            WorkerError: a `ValueError`, if it can't work at all.
            ImportError: if it needs a package that is not installed.
        """
        requests = (RationaleRequest(value, "query", SEEDS) for value in inputs)
        with self._lock:
            if self.takes_budget:
                vars(self.worker)["max_tokens"] = max_tokens
            for number, answers in drawn_as_done(self.worker, requests):
                yield number, _thought(answers)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the lock here when it is sent to another process."""
        return {"worker": self.worker, "takes_budget": self.takes_budget}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())


def drawn_as_done(
    worker: RationaleWorker, requests: Iterable[RationaleRequest]
) -> Iterator[tuple[int, Sequence[Rationale | Failure]]]:
    """Yield numbers of requests and their answers, as a worker has them; one that answers at once gets its batches."""
    if (draw_each := getattr(worker, "draw_each", None)) is not None:
        yield from draw_each(requests)
        return
    left, start = iter(requests), 0
    while batch := list(islice(left, worker.batch_size)):
        yield from enumerate(worker.draw(batch), start)
        start += len(batch)


def thinker_of_worker(keys: Mapping[str, Any]) -> WorkerThinker:
    """
    Make a thinker of a worker's keys, as a pool file gives them, see [`make_worker`].

    A `name` may be missing. Without a `temperature` it is 0, and without `max_tokens` it is the `max_reasoning_tokens`
    of each call.

    Raises:
        ValueError: naming the key that is missing, unknown or wrong.
    """
    if keys.get("samples", 1) != 1:
        raise ValueError(f"samples is {keys['samples']!r}: a thinker writes one rationale of an input; leave it out.")
    worker = make_worker({"name": NAME, **keys, "samples": 1})
    fields = vars(worker)
    if "temperature" in fields and "temperature" not in keys:
        fields["temperature"] = GREEDY
    return WorkerThinker(worker, takes_budget="max_tokens" in fields and "max_tokens" not in keys)


def _thought(answers: Sequence[Rationale | Failure]) -> Thought | NoThought:
    if not answers:
        return NoThought("the worker has nothing to say about such an input.")
    answer = answers[0]
    if isinstance(answer, Failure):
        return NoThought(answer.reason)
    return Thought(answer.text, answer.finish_reason == "length")
