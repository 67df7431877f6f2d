"""Say what the scheduler asks of an executor, which reads rows, lets them think and gives their vectors."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mmemb_r1.modeling.scheduling_mmemb_r1 import ReasoningOptions


@dataclass(frozen=True)
class Prepared:
    """
    Hold what an executor made of an input before its turn comes.

    Attributes:
        tokens: of the prompt.
        features: what the executor reads.
        kind: rows of the same one can be read together.
    """

    tokens: int
    features: Any
    kind: Hashable = None


@dataclass(eq=False)
class Row:
    """
    Ask for the vector of one input.

    Attributes:
        value: an input, see `parse_input`.
        options: how to think.
        prompt: the system turn, if the input brings none.
        has_media: whether there are pictures or videos in it.
        index: its position among the inputs of its request.
        prepared: what the executor made of it; `None` before, and once it was read.
    """

    value: Any
    options: ReasoningOptions
    prompt: str | None = None
    has_media: bool = False
    index: int = 0
    prepared: Prepared | None = None

    @property
    def may_think(self) -> bool:
        """Tell whether it is for the gate or the caller to say that it thinks."""
        return self.options.reasoning != "never"


@dataclass(frozen=True)
class Answer:
    """
    Hold what came out for one row.

    Attributes:
        embedding: `(D,)` float32, before it is shortened.
        gate_prob: probability of thinking.
        prompt_tokens: tokens that were read.
        rounds: rationales that the vector is read after; 0 for a direct one.
        reasoning_tokens: tokens that were written; of a rationale that was stopped, those that this process wrote.
        rationale_ids: of whole rationales, with the control tokens between rounds.
        stopped: whether it would have thought (longer), but was not let.
        second_look_weight: how much of the vector is that after the rationales; `None` without a second look.
    """

    embedding: np.ndarray
    gate_prob: float
    prompt_tokens: int
    rounds: int = 0
    reasoning_tokens: int = 0
    rationale_ids: tuple[int, ...] = ()
    stopped: bool = False
    second_look_weight: float | None = None


# What becomes of a row: a `ValueError` says why it is refused; with any other error the executor failed over it
Outcome = tuple[Row, Answer | Exception]


class ThinkingLostError(RuntimeError):
    """Report that the rows at work can't go on: whoever catches it calls `reset`, and begins them again."""


class Executor(Protocol):
    """
    Read rows and let them think. All but `prepare` and `rationale` is called from one thread.

    Attributes:
        thinking: how many rows are at work.
        room: how many more can begin now.
        fixed_cost: what reading a batch costs whatever is in it: as many tokens could be read in that time, about.
    """

    fixed_cost: int

    @property
    def thinking(self) -> int: ...

    @property
    def room(self) -> int: ...

    def prepare(self, rows: Sequence[Row]) -> list[Prepared | ValueError]:
        """Make what is read of rows, one by one: what one holds changes nothing for others. Any thread may call it."""

    def read(self, rows: Sequence[Row]) -> Sequence[Outcome]:
        """
        Read rows that were prepared, no more of those that may think than there is room for; return those that are
        done with it. The others begin to think.

        Raises:
            ThinkingLostError: if the rows at work were lost.
            Exception: any other leaves them as they were, and these rows unread.
        """

    def step(self) -> Sequence[Outcome]:
        """Let the rows at work go on for a moment; return those that are done. After an exception all are lost."""

    def stop(self, rows: Sequence[Row]) -> Sequence[Outcome]:
        """Take rows out of those at work, with the last vector that each has."""

    def reset(self) -> None:
        """Forget all rows at work."""

    def rationale(self, answer: Answer) -> str:
        """Write a rationale as text; rounds are separated by newlines. Any thread may call it."""

    def close(self) -> None:
        """End what it started; nothing is called afterwards but `rationale`."""
