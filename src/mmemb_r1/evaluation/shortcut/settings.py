"""How the shortcut test is made."""

from __future__ import annotations

from dataclasses import dataclass

from mmemb_r1.evaluation.settings import Settings


@dataclass(frozen=True)
class ShortcutSettings:
    """
    How a model is tested: what makes two tests of it two.

    Args:
        seed: of the swaps, the shuffles and the choice of queries; defaults to 0.
        max_queries: of a task at most, drawn by the seed. Default: all.
        batch_size: inputs that are read at once; defaults to 64.
        max_reasoning_tokens: budget of one rationale. Default: the checkpoint's.
        max_reasoning_rounds: how often one input may think. Default: the checkpoint's.

    Raises:
        ValueError: if a number is below 1.
    """

    seed: int = 0
    max_queries: int | None = None
    batch_size: int = 64
    max_reasoning_tokens: int | None = None
    max_reasoning_rounds: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_queries", "batch_size", "max_reasoning_tokens", "max_reasoning_rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; at least 1 is needed")

    def encoding(self) -> Settings:
        """How queries and candidates are embedded."""
        return Settings(
            modes=("always",),
            batch_size=self.batch_size,
            max_reasoning_tokens=self.max_reasoning_tokens,
            max_reasoning_rounds=self.max_reasoning_rounds,
        )
