"""Compute what is logged of rollouts: how training goes, and what reasoning is worth on a held-out set."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmemb_r1.training.adaptive.advantages import strata

LEAST_SPREAD = 1e-4  # of rewards within a group, to learn from


def rollout_metrics(
    fields: Mapping[str, Tensor], rewards: Tensor, reasoned: Tensor, gap: Tensor, probs: Tensor, threshold: float
) -> dict[str, Tensor]:
    """
    Compute numbers that show how training goes, and whether the gate or the rationales degenerate.

    Args:
        fields: `(N * G,)` of the rollouts: `num_reasoning_tokens`, `num_reasoning_rounds`, `truncated`.
        rewards, reasoned: `(N, G)`, the latter bool.
        gap: `(N,)` mean target probability after reasoning minus before; NaN for groups of one kind.
        probs: `(N,)` the gate's probability of reasoning; `threshold` is the gate's.

    Returns:
        `gate/prob`, `gate/thinks` (share of queries) and `gate/right` (how often that is the sign of the gap);
        `utility_gap`; `rationale/tokens`, `rationale/rounds`, `rationale/truncated` of reasoned rollouts;
        `rationale/groups_without_spread`, the share of groups whose rationales all got the same reward. What there is
        nothing of is NaN.
    """
    rows, thinks, known = reasoned.flatten(), probs >= threshold, ~gap.isnan()
    highest = rewards.masked_fill(~reasoned, -torch.inf).amax(dim=1)
    spread = (highest - rewards.masked_fill(~reasoned, torch.inf).amin(dim=1))[reasoned.any(dim=1)]
    return {
        "gate/prob": probs.mean(),
        "gate/thinks": thinks.float().mean(),
        "gate/right": (thinks == (gap > 0))[known].float().mean(),
        "utility_gap": gap[known].mean(),
        "rationale/tokens": fields["num_reasoning_tokens"][rows].mean(),
        "rationale/rounds": fields["num_reasoning_rounds"][rows].mean(),
        "rationale/truncated": fields["truncated"][rows].mean(),
        "rationale/groups_without_spread": (spread < LEAST_SPREAD).float().mean(),
    }


def retrieval_metrics(ranks: Tensor, reasoned: Tensor, thinks: Tensor) -> dict[str, Tensor]:
    """
    Compute how well queries find their targets directly, after a rationale, and as the gate decides.

    Args:
        ranks: `(N, G)` of the target for each rollout, from 1.
        reasoned: `(N, G)` bool; each group holds both kinds.
        thinks: `(N,)` bool, whether the gate reasons at its threshold.

    Returns:
        `never_hit@1`, `always_hit@1` and `auto_hit@1`, as [`~mmemb_r1.evaluation.RetrievalEvaluator`] calls them, and
        the same of `mrr`, the mean reciprocal rank. Rationales are drawn; a query counts with the mean over its own.

    >>> found = retrieval_metrics(torch.tensor([[2.0, 1.0, 4.0]]), torch.tensor([[False, True, True]]),
    ...                           torch.tensor([True]))
    >>> {name: value.item() for name, value in found.items() if name.endswith("mrr")}
    {'never_mrr': 0.5, 'always_mrr': 0.625, 'auto_mrr': 0.625}
    """
    found: dict[str, Tensor] = {}
    for name, values in (("hit@1", (ranks == 1).float()), ("mrr", 1 / ranks)):
        direct, after = strata(values, reasoned)[1].unbind(dim=1)  # (N,), (N,)
        modes = {"never": direct, "always": after, "auto": torch.where(thinks, after, direct)}
        found |= {f"{mode}_{name}": value.mean() for mode, value in modes.items()}
    return found
