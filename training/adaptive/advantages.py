"""Compute the advantages of decisions and of rationales, as functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def decision_advantages(rewards: Tensor, reasoned: Tensor, gate_probs: Tensor, floor: float = 0.0) -> Tensor:
    """
    Compute advantages of the decision in groups whose decisions are stratified: set, not sampled.

    With p the gate's probability, Q_d and Q_r the mean rewards of direct and of reasoned rollouts and
    V = p Q_r + (1 - p) Q_d, a decision a has (Q_a - V) G pi(a) / n_a. The mean over a group of
    advantage x gradient of log pi(a) is then p (1 - p) (Q_r - Q_d), the exact policy gradient, whatever n_d : n_r.

    Args:
        rewards, reasoned: `(N, G)`, the latter bool. Each group needs rollouts of both kinds.
        gate_probs: `(N,)` probability of thinking when the group was drawn.
        floor: pi(a) counts as at least so much, so that a gate that has collapsed can recover.

    Returns:
        `(N, G)`. Source: ours.

    >>> rewards, reasoned = torch.tensor([[0.0, 1.0, 0.5]]), torch.tensor([[False, True, True]])
    >>> decision_advantages(rewards, reasoned, torch.tensor([0.5])).tolist()
    [[-0.5625, 0.28125, 0.28125]]
    """
    counts, means = strata(rewards, reasoned)
    probs = torch.stack([1 - gate_probs, gate_probs], dim=1)  # (N, 2)
    value = (probs * means).sum(dim=1, keepdim=True)  # (N, 1)
    of_kind = (means - value) * rewards.shape[1] * probs.clamp(min=floor) / counts  # (N, 2)
    return of_kind.gather(1, reasoned.long())


def strata(values: Tensor, reasoned: Tensor) -> tuple[Tensor, Tensor]:
    """
    Count and average `values` `(N, G)` of the direct and of the reasoned rollouts, `(N, 2)` each. A mean of none is
    NaN.

    >>> strata(torch.tensor([[0.0, 1.0, 0.5]]), torch.tensor([[False, True, True]]))[1].tolist()
    [[0.0, 0.75]]
    """
    kinds = torch.stack([~reasoned, reasoned], dim=1).to(values.dtype)  # (N, 2, G)
    counts = kinds.sum(dim=2)
    return counts, (kinds * values[:, None]).sum(dim=2) / counts


def leave_one_out(rewards: Tensor, chosen: Tensor) -> Tensor:
    """
    Subtract from each chosen reward `(N, G)` the mean of the others that are chosen in its group; 0 for the rest, and
    for one alone.

    This tells good rationales from bad ones, and does not punish reasoning where it does not pay. Source: the
    leave-one-out baseline of RLOO (arXiv 2402.14740).

    >>> leave_one_out(torch.tensor([[9.0, 1.0, 2.0, 6.0]]), torch.tensor([[False, True, True, True]])).tolist()
    [[0.0, -3.0, -1.5, 4.5]]
    """
    kept = torch.where(chosen, rewards, 0.0)
    others = chosen.sum(dim=1, keepdim=True) - 1  # (N, 1)
    baseline = (kept.sum(dim=1, keepdim=True) - kept) / others.clamp(min=1)
    return torch.where(chosen & (others > 0), rewards - baseline, 0.0)


def group_normalised(rewards: Tensor, least_deviation: float = 1e-4) -> Tensor:
    """
    Subtract from rewards `(N, G)` the mean of their group, and divide by its deviation plus `least_deviation`.

    Source: GRPO (arXiv 2402.03300).

    >>> [round(value, 2) for value in group_normalised(torch.tensor([[0.0, 1.0, 2.0]]))[0].tolist()]
    [-1.0, 0.0, 1.0]
    """
    return (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, keepdim=True) + least_deviation)


def utility_rewards(utility: Tensor, reasoned: Tensor, clip: float, tolerance: float) -> Tensor:
    """
    Reward the decisions `(N, G)`, with either sign, by that of the net utility of reasoning `(N,)`.

    Sizes end at `clip`; a utility below `tolerance` counts as one for the direct embedding. Source: the paper rewards
    by the utility gap; clip and tolerance are ours.

    >>> utility_rewards(torch.tensor([0.4, 0.01]), torch.tensor([[False, True]] * 2), clip=1.0, tolerance=0.05)
    tensor([[-0.4000,  0.4000],
            [ 0.0500, -0.0500]])
    """
    size = utility.abs().clamp(min=tolerance, max=clip)  # indifference is worth as much as the least that counts
    signed = torch.where(utility >= tolerance, size, -size)[:, None]  # (N, 1)
    return torch.where(reasoned, signed, -signed)


def token_advantages(
    decided: Tensor, later: Tensor, markers: Tensor, counts: Tensor, decision_weight: float, rationale_weight: float
) -> Tensor:
    """
    Give every token its advantage, scaled so that a mean over all tokens gives each kind of loss its mean and weight.

    Args:
        decided, later: `(B,)` of the first decision and of everything after it.
        markers: `(B, C)` bool, where completions hold `<|embed|>`: decisions follow them.
        counts: `(3,)` over all processes: rollouts, chosen tokens after the first, all chosen tokens.
        decision_weight, rationale_weight: of the means over rollouts and over the tokens of rationales.

    Returns:
        `(B, C)`. Source: ours.

    >>> nowhere, counts = torch.zeros(1, 3, dtype=torch.bool), torch.tensor([1, 2, 3])
    >>> token_advantages(torch.tensor([2.0]), torch.tensor([3.0]), nowhere, counts, 1.0, 1.0).tolist()
    [[6.0, 4.5, 4.5]]
    """
    rollouts, after_first, total = counts
    of_decisions = decision_weight * total / rollouts
    of_rationales = rationale_weight * total / after_first.clamp(min=1)
    after_marker = torch.nn.functional.pad(markers[:, :-1], (1, 0))
    advantages = later[:, None] * torch.where(after_marker, of_decisions, of_rationales)  # (B, C)
    advantages[:, 0] = decided * of_decisions
    return advantages
