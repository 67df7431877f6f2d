"""A model as the evaluation asks it: inputs in; vectors, what was decided, and the time it took out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

QUERY, DOCUMENT = "query", "document"  # sides, and the names under which a model saves their prompts


@dataclass(frozen=True)
class Embedded:
    """
    What a model made of N inputs.

    Attributes:
        embeddings: `(N, D)` float32.
        reasoned: `(N,)` whether each thought.
        num_reasoning_tokens: `(N,)` int64, of its rationale.
        num_reasoning_rounds: `(N,)` int64, how often it thought.
        gate_prob: `(N,)` float64; `None` of a model without a gate.
        rationales: what was thought, `""` if nothing; `None` of a model that can't.
        seconds: what embedding took, without what a cache took.
        timed: how many inputs that was for: those that were computed. What came from a cache was not, and of equal
            inputs, where the model computes them once, one was.
    """

    embeddings: npt.NDArray[np.float32]
    reasoned: npt.NDArray[np.bool_]
    num_reasoning_tokens: npt.NDArray[np.int64]
    num_reasoning_rounds: npt.NDArray[np.int64]
    gate_prob: npt.NDArray[np.float64] | None
    rationales: list[str] | None
    seconds: float
    timed: int

    @property
    def seconds_per_input(self) -> float | None:
        """`None` if nothing was timed."""
        return self.seconds / self.timed if self.timed else None


class Encoder(Protocol):
    """A model as the evaluation asks it."""

    def facts(self) -> dict[str, Any]:
        """What makes it another model: `checkpoint`, a digest or `None`, and its settings beside the checkpoint."""

    def reasoning_options(self) -> dict[str, Any]:
        """Those of `encode` that its queries are embedded with, as far as they are known."""

    def embed(self, inputs: list[Any], *, side: str, reasoning: str, prompt: str | None) -> Embedded:
        """
        Embed inputs at once.

        Args:
            inputs: as `encode` takes them.
            side: `"query"` or `"document"`.
            reasoning: mode.
            prompt: instruction of inputs that have none of their own. `None`: what the model saved for the side.
        """


def settings_beside(model: SentenceTransformer) -> dict[str, Any]:
    """What a loaded model may be told beside its checkpoint."""
    return {"truncate_dim": model.truncate_dim, "prompts": saved_prompts(model)}


def saved_prompts(model: Any) -> dict[str, str]:
    """Side -> the prompt that the model saved for it, if it did."""
    saved = getattr(model, "prompts", None) or {}
    return {side: saved[side] for side in (QUERY, DOCUMENT) if saved.get(side)}


def check_count(rows: Sequence[Any], inputs: Sequence[Any]) -> None:
    """Refuse more or fewer rows than inputs."""
    if len(rows) != len(inputs):
        raise ValueError(f"the model gave {len(rows)} embeddings for {len(inputs)} inputs")
