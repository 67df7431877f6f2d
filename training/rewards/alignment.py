"""How well the last embedding meets its target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def alignment_reward(alignment: Sequence[float], **kwargs: Any) -> list[float]:
    """
    The alignment of each rollout's last embedding with its pair's target: the target's probability among negatives, in
    0 ... 1. Being relative to the negatives, it does not reward rationales that raise every pair's score.

    Args:
        alignment: measured by the scoring embedder.
        **kwargs: ignored.

    Source: reward by alignment is the paper's; a bounded one is ours.

    >>> alignment_reward(alignment=[0.25, 1.0])
    [0.25, 1.0]
    """
    return [float(value) for value in alignment]
