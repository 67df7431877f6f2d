"""What thinking costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def cost_reward(num_reasoning_tokens: Sequence[int], reasoning_budget: Sequence[int], **kwargs: Any) -> list[float]:
    """
    Minus the share of its budget that a rollout spent: 0 for a direct embedding, -1 for a spent budget.

    Args:
        num_reasoning_tokens: rationale tokens of each rollout, of all rounds.
        reasoning_budget: what it may spend in all rounds.
        **kwargs: ignored.

    Source: ours.

    >>> cost_reward(num_reasoning_tokens=[0, 16], reasoning_budget=[64, 64])
    [0.0, -0.25]
    """
    return [-used / budget for used, budget in zip(num_reasoning_tokens, reasoning_budget, strict=True)]
