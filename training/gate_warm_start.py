"""Warm start of the reasoning gate: think where thinking was seen to pay, on pairs the embedder was not fitted to."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def alignment(queries: Tensor, candidates: Tensor, positives: Tensor, temperature: float = 0.02) -> Tensor:
    """
    How well each query meets its target against the other candidates, bounded.

    Args:
        queries: `(B, D)` unit vectors.
        candidates: `(C, D)` unit vectors.
        positives: `(B,)` index of each query's target.
        temperature: divides the cosine similarities.

    Returns:
        `(B,)` softmax probability of the target. Source: ours.

    >>> alignment(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), temperature=1.0).round(decimals=3).tolist()
    [0.7310000061988831, 0.7310000061988831]
    """
    probabilities = (queries @ candidates.T / temperature).softmax(dim=1)  # (B, C)
    return probabilities.gather(1, positives[:, None]).squeeze(1)


def gate_loss(logits: Tensor, gap: Tensor, cost: float, weights: Tensor | None = None) -> Tensor:
    """
    Cross-entropy of the gate against the sign of the net utility, each input weighted by how much is at stake.

    Args:
        logits: `(B,)` gate logits.
        gap: `(B,)` utility gap, alignment after thinking minus alignment before.
        cost: what a thought has to gain to be worth its time.
        weights: `(B,)` further weights of the inputs. Default: none.

    Returns:
        Scalar. Source: utility gap of the paper; the weighting is ours.

    >>> round(gate_loss(torch.zeros(2), torch.tensor([0.5, -0.5]), cost=0.0).item(), 4)  # log 2
    0.6931
    """
    net = gap - cost
    losses = nn.functional.binary_cross_entropy_with_logits(logits, (net > 0).float(), reduction="none")
    stake = net.abs() if weights is None else net.abs() * weights
    return (losses * stake).sum() / stake.sum().clamp(min=1e-8)


def fit_gate(
    gate: nn.Module,
    hidden: Tensor,
    gap: Tensor,
    cost: float = 0.02,
    weight_decay: float = 0.1,
    steps: int = 200,
    weights: Tensor | None = None,
) -> dict[str, float]:
    """
    Fit a gate to utility gaps that were measured; the rest of the model stays as it is.

    Args:
        gate: the [`ReasoningGate`], changed in place.
        hidden: `(B, H)` hidden states at the first `<|embed|>`.
        gap: `(B,)` utility gap of each input.
        cost: what a thought has to gain to be worth its time, in units of the gap.
        weight_decay: of the squared weights (not the bias).
        steps: iterations of L-BFGS at most.
        weights: `(B,)` of the inputs, besides what is at stake in each. Default: none.

    Returns:
        `loss`, `thinks` (share of inputs with gate probability of at least a half) and `pays` (share of inputs whose
        gap is above the cost).

    Raises:
        ValueError: if there are no inputs, or the two differ in number.
    """
    if len(hidden) == 0 or len(hidden) != len(gap):
        raise ValueError(f"{len(hidden)} hidden states and {len(gap)} gaps: as many of each are needed, at least one.")
    dtype = next(gate.parameters()).dtype
    hidden, gap = hidden.detach().to(dtype).clone(), gap.detach().clone()
    matrices = [parameter for parameter in gate.parameters() if parameter.ndim > 1]
    optimizer = torch.optim.LBFGS(gate.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = gate_loss(gate(hidden), gap, cost, weights)
        loss = loss + weight_decay * sum(matrix.square().sum() for matrix in matrices)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    gate.zero_grad(set_to_none=True)
    with torch.no_grad():
        logits = gate(hidden)
        return {
            "loss": float(gate_loss(logits, gap, cost, weights)),
            "thinks": float((logits >= 0).float().mean()),
            "pays": float((gap > cost).float().mean()),
        }
