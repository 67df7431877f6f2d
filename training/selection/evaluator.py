"""What an evaluator is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Trial:
    """
    One input with the rationales proposed for it, and the inputs of the other side that it is tried on.

    Args:
        side: of which side the rationales are, `"query"` or `"target"`.
        anchor: the input that they are about.
        others: inputs of the other side; the first one is the anchor's partner, the others are negatives.
        rationales: `None` stands for no rationale.
    """

    side: str
    anchor: Mapping[str, Any]
    others: Sequence[Mapping[str, Any]]
    rationales: Sequence[str | None]


class PairEvaluator(Protocol):
    """Judges whether a query and a target match, with and without a rationale."""

    @property
    def definition(self) -> dict[str, Any]:
        """What determines the answers, and nothing that only affects speed. JSON."""

    def match_logits(self, trials: Sequence[Trial]) -> list[Tensor]:
        """
        Log-odds that the pairs match: for each trial `(len(others), len(rationales))`, float32, on the CPU.

        Raises:
            TrialError: naming the trial with an input that can't be read.
        """


class TrialError(ValueError):
    """
    A trial that can't be judged.

    Attributes:
        index: position of the trial among those passed.
        reason: what came, what is allowed and what to do.
    """

    def __init__(self, index: int, reason: str) -> None:
        self.index, self.reason = index, reason
        super().__init__(f"Trial {index} can't be judged: {reason}")
