"""The protocol of a rationale worker: what it is asked, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

SIDES = ("query", "target")


@dataclass(frozen=True)
class RationaleRequest:
    """
    All that a worker gets to see: one input of one side.

    Never the other side, the label or the negatives: what can't be seen at inference must not be seen here, or the
    gain of a rationale would be leakage.

    Args:
        input: those of its parts that are given: `text`, `image`, `video`, `instruction`.
        side: `"query"` or `"target"`.
        seeds: one per rationale wanted; the same seed and input give the same rationale wherever the worker can.
    """

    input: Mapping[str, Any]
    side: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Rationale:
    """
    One rationale.

    Args:
        text: the rationale alone, without tags.
        num_tokens: its length in the worker's own tokens.
        finish_reason: `"stop"` if the worker ended it, `"length"` if the token budget cut it off.
    """

    text: str
    num_tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Failure:
    """Why there is no rationale. The table records it instead of one."""

    reason: str


class RationaleWorker(Protocol):
    """
    A source of rationales.

    A worker that occupies memory others may need, such as a model on a GPU, also has a method `close()`, which frees
    it until the next `draw`. It is called when the worker has drawn all of its rationales in a run.

    A worker that waits for another machine also has a method `draw_each(requests)`, which takes the place of `draw`:
    a generator that reads requests as it has room for them and yields `(number of a request, its answers)` in any
    order. Such workers draw beside the others of their pool, each in a thread; `close()` is then also called from
    outside, to end a `draw_each` early.

    Attributes:
        name: unique in a pool; names the worker in the table.
        num_samples: rationales per input.
        batch_size: inputs per call of `draw`.
    """

    name: str
    num_samples: int
    batch_size: int

    @property
    def definition(self) -> dict[str, Any]:
        """All that determines the rationales (model, prompt, sampling), and nothing that only affects speed: JSON."""

    def draw(self, requests: Sequence[RationaleRequest]) -> list[list[Rationale | Failure]]:
        """
        Draw the rationales of each request, in the order of its seeds.

        An input that this worker has nothing to say about gives an empty list; one that it fails on gives a
        `Failure` instead of each rationale.

        Raises:
            WorkerError: if no request could succeed (wrong address, key, model): the run stops.
        """


class WorkerError(ValueError):
    """A worker can't work at all; the message names the worker and the key of the pool file to change."""


def require(worker: RationaleWorker, key: str, holds: bool, allowed: str) -> None:
    """Refuse the value of a worker's key unless it `holds`, naming the worker, the key and what is `allowed`."""
    if not holds:
        raise ValueError(f"Worker {worker.name!r}: `{key}` is {getattr(worker, key)!r}; allowed: {allowed}.")


def is_number(value: Any, kind: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    """Whether a value is a finite number of a kind and within bounds.

    >>> is_number(3, int, 1), is_number(True, int, 1), is_number(0.5, int | float, 1)
    (True, False, False)
    """
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value) and least <= value <= most
