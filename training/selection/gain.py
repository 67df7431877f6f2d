"""
Compute gains from match logits, and the posterior from gains: the formulas of selection.

The gain over no rationale, measured on the match confidence of the pair, is the paper's. The wrong-pair correction,
the log-odds, the margin and the softmax over what was kept are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

SPACES = ("probability", "log-odds")


def confidence(logit: Tensor) -> Tensor:
    """
    Return the probability that a pair matches, from its log-odds; any shape.

    >>> confidence(torch.tensor([0.0, 100.0])).tolist()
    [0.5, 1.0]
    """
    return logit.sigmoid()


def marginal_gain(logit_with: Tensor, logit_without: Tensor, space: str = "probability") -> Tensor:
    """
    Return what a rationale adds to the match of a pair: `c(q, t | do(r)) - c(q, t | do(intervention))`.

    Args:
        logit_with: match logits with the rationale, any shape.
        logit_without: match logits under the intervention, broadcast to the same shape.
        space: `"probability"` takes the difference of confidences, `"log-odds"` that of the logits, which still tells
            rationales apart where confidences saturate.

    >>> marginal_gain(torch.tensor([2.0, -1.0]), torch.tensor(0.0), "log-odds").tolist()
    [2.0, -1.0]
    >>> marginal_gain(torch.tensor(100.0), torch.tensor(0.0)).item()
    0.5
    """
    return scaled(logit_with, space) - scaled(logit_without, space)


def corrected_gain(gain: Tensor, negative_gains: Tensor) -> Tensor:
    """
    Subtract what a rationale adds to wrong pairs on average: it has to help this pair, not every pair.

    Only what it adds is subtracted: a rationale that makes every pair less credible would otherwise gain from the
    wrong ones, and could be kept although it harms its own pair.

    Args:
        gain: `(..., N)` gains on the right pair.
        negative_gains: `(..., M, N)` gains of the same rationales on `M` wrong pairs. Without any (`M` = 0) nothing is
            subtracted.

    >>> corrected_gain(torch.tensor([0.5, 0.5]), torch.tensor([[0.5, 0.0], [0.25, -0.25]])).tolist()
    [0.125, 0.5]
    """
    if negative_gains.shape[-2] == 0:
        return gain
    return gain - negative_gains.mean(dim=-2).clamp(min=0)


def posterior(gain: Tensor, margin: float = 0.0, temperature: float = 0.1) -> tuple[Tensor, Tensor]:
    """
    Keep the rationales of one input that gain enough, and weight them.

    Args:
        gain: `(N,)`; NaN is never kept.
        margin: a gain has to be larger.
        temperature: of the softmax over the kept gains; positive. Infinity makes it uniform.

    Returns:
        Posterior weights `(N,)`, which sum to 1 (or are all 0 if none is kept), and `(N,)` bool, which ones are kept.

    Raises:
        ValueError: if the temperature is not positive.

    >>> weights, kept = posterior(torch.tensor([0.3, -0.1, 0.3]))
    >>> weights.tolist(), kept.tolist()
    ([0.5, 0.0, 0.5], [True, False, True])
    >>> posterior(torch.tensor([-0.2]))[0].tolist()
    [0.0]
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} has to be positive.")
    kept = gain > margin
    weights = torch.zeros_like(gain)
    weights[kept] = torch.softmax(gain[kept] / temperature, dim=0)
    return weights, kept


def scaled(logit: Tensor, space: str) -> Tensor:
    """Convert a match logit to the space in which gains are taken."""
    if space not in SPACES:
        raise ValueError(f"space={space!r}; allowed: {', '.join(map(repr, SPACES))}.")
    return confidence(logit) if space == "probability" else logit
