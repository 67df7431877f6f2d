"""Whether a rollout is well-formed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def format_reward(
    reasoned: Sequence[bool], num_reasoning_tokens: Sequence[int], truncated: Sequence[bool], **kwargs: Any
) -> list[float]:
    """
    1 for a direct embedding and for rationales that say something and end by themselves, 0 for others: the format
    favours neither decision.

    Args:
        reasoned: whether each rollout thought.
        num_reasoning_tokens: rationale tokens of each.
        truncated: whether any of its rationales was closed by force.
        **kwargs: ignored.

    Source: a format reward is the paper's; that both decisions get it is ours.

    >>> format_reward(reasoned=[False, True, True], num_reasoning_tokens=[0, 9, 64], truncated=[False, False, True])
    [1.0, 1.0, 0.0]
    """
    rows = zip(reasoned, num_reasoning_tokens, truncated, strict=True)
    return [float(not thought or (length > 0 and not cut)) for thought, length, cut in rows]
