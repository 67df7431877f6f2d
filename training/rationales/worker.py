"""What a rationale worker is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

SIDES = ("query", "target")


@dataclass(frozen=True)
class RationaleRequest:
    """
    All that a worker gets to see: one input of one side.

    Never the other side, the label or the negatives: what could not be seen at inference must not be seen here, or
    the gain of a rationale would be leakage.

    Args:
        input: the parts that are there of `text`, `image`, `video`, `instruction`.
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
        finish_reason: `"stop"` if it came to its end, `"length"` if the token budget cut it.
    """

    text: str
    num_tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Failure:
    """Why there is no rationale; it is recorded in the table in the place of one."""

    reason: str


class RationaleWorker(Protocol):
    """
    A source of rationales.

    A worker that holds what others may need the room for, such as a model on a GPU, also has a method `close()`, which
    lets go of it until the next `draw`. It is called when the worker has drawn all of its rationales in a run.

    Attributes:
        name: unique in a pool; names the worker in the table.
        num_samples: rationales per input.
        batch_size: inputs it likes to get at once.
    """

    name: str
    num_samples: int
    batch_size: int

    @property
    def definition(self) -> dict[str, Any]:
        """What determines the rationales (model, prompt, sampling), and nothing that only affects speed. JSON."""

    def draw(self, requests: Sequence[RationaleRequest]) -> list[list[Rationale | Failure]]:
        """
        Draw the rationales of each request, in the order of its seeds.

        An input that this worker has nothing to say about gives an empty list, one that it fails on a `Failure` in
        the place of each rationale.

        Raises:
            WorkerError: if no request could succeed (wrong address, key, model): the run stops.
        """


class WorkerError(ValueError):
    """A worker that can't work at all; the message names the worker and the key of the pool file to mend."""
