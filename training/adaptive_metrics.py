"""What the adaptive phase logs of a batch of rollouts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LEAST_SPREAD = 1e-4  # of rewards within a group, to learn from


def rollout_metrics(
    fields: Mapping[str, Tensor], rewards: Tensor, reasoned: Tensor, gap: Tensor, probs: Tensor, threshold: float
) -> dict[str, Tensor]:
    """
    Numbers that tell how training goes, and whether the gate or the rationales degenerate.

    Args:
        fields: `(N * G,)` of the rollouts: `num_reasoning_tokens`, `num_reasoning_rounds`, `truncated`.
        rewards: `(N, G)`.
        reasoned: `(N, G)` bool.
        gap: `(N,)` mean alignment after thinking minus before.
        probs: `(N,)` the gate's probability of thinking.
        threshold: from which it thinks when it is used.

    Returns:
        `gate/prob`, `gate/thinks` (share of queries) and `gate/right` (how often that is the sign of the gap);
        `utility_gap`; `rationale/tokens`, `rationale/rounds`, `rationale/truncated` of the rollouts that thought;
        `rationale/groups_without_spread`, the share of groups whose rationales all got the same reward.
    """
    thought, thinks = reasoned.flatten(), probs >= threshold
    within = torch.stack(
        [row[chosen].max() - row[chosen].min() for row, chosen in zip(rewards, reasoned, strict=True)]
    )
    return {
        "gate/prob": probs.mean(),
        "gate/thinks": thinks.float().mean(),
        "gate/right": (thinks == (gap > 0)).float().mean(),
        "utility_gap": gap.mean(),
        "rationale/tokens": fields["num_reasoning_tokens"][thought].mean(),
        "rationale/rounds": fields["num_reasoning_rounds"][thought].mean(),
        "rationale/truncated": fields["truncated"][thought].mean(),
        "rationale/groups_without_spread": (within < LEAST_SPREAD).float().mean(),
    }
