"""The loss terms of the joint phase, as functions of tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

PathWeights = Mapping[tuple[int, int], float]


def info_nce(scores: Tensor, ignore: Tensor, valid: Tensor) -> Tensor:
    """
    Symmetric InfoNCE of a square score matrix whose diagonal holds the positive pairs.

    Args:
        scores: `(B, B)` similarities of queries (rows) and targets (columns), divided by the temperature.
        ignore: `(B, B)` bool, entries that are neither positive nor negative (false negatives). The diagonal is never
            ignored.
        valid: `(B,)` bool, rows that are anchors; the others still serve as negatives.

    Returns:
        Scalar, the mean over valid rows and both directions; 0 if no row is valid. Source: CLIP's loss with masking.

    >>> scores, nothing = torch.zeros(4, 4), torch.zeros(4, 4, dtype=torch.bool)
    >>> round(info_nce(scores, nothing, torch.ones(4, dtype=torch.bool)).item(), 4)  # log 4
    1.3863
    """
    ignore = ignore & ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    scores = scores.masked_fill(ignore, -torch.inf)
    diagonal = scores.diagonal()
    both = (scores.logsumexp(dim=1) + scores.logsumexp(dim=0)) / 2 - diagonal  # (B,)
    return (both * valid).sum() / valid.sum().clamp(min=1)


def same_key(keys: Tensor) -> Tensor:
    """`(B,)` integer keys -> `(B, B)` bool, which rows share a key."""
    return keys[:, None] == keys[None, :]


def false_negatives(query_keys: Tensor, target_keys: Tensor) -> Tensor:
    """
    Pairs off the diagonal that are no negatives: same query or same target, in either direction.

    Args:
        query_keys: `(B,)` integers, equal where the queries are the same.
        target_keys: `(B,)` likewise for targets.

    Returns:
        `(B, B)` bool.

    >>> false_negatives(torch.tensor([0, 1, 2]), torch.tensor([5, 5, 6])).int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """
    return same_key(query_keys) | same_key(target_keys)


def path_loss(
    queries: Tensor,
    query_paths: Tensor,
    targets: Tensor,
    target_paths: Tensor,
    ignore: Tensor,
    weights: PathWeights,
    temperature: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """
    Weighted InfoNCE over the path pairs (a, b): query after a rationales against target after b.

    A row that lacks path a or b is no anchor there, but stays a negative with its direct vector.

    Args:
        queries: `(B, K, D)` embeddings per path, unit norm.
        query_paths: `(B, K)` bool, which of them exist; path 0 always does.
        targets: `(B, L, D)`, target_paths: `(B, L)`, likewise.
        ignore: `(B, B)` bool, see [`false_negatives`].
        weights: weight of each pair of paths.
        temperature: divides the cosine similarities.

    Returns:
        The weighted sum, and each unweighted term as `nce_ab` (only those with valid rows). Source: ours;
        the paper names a direct and a reasoning path.
    """
    total = queries.new_zeros(())
    terms: dict[str, Tensor] = {}
    for (a, b), weight in weights.items():
        if a >= queries.shape[1] or b >= targets.shape[1] or weight == 0:
            continue
        valid = query_paths[:, a] & target_paths[:, b]  # (B,)
        if not bool(valid.any()):
            continue
        query = torch.where(query_paths[:, a, None], queries[:, a], queries[:, 0])  # (B, D)
        target = torch.where(target_paths[:, b, None], targets[:, b], targets[:, 0])  # (B, D)
        term = info_nce(query @ target.T / temperature, ignore, valid)
        terms[f"nce_{a}{b}"] = term.detach()
        total = total + weight * term
    return total, terms


def matryoshka(embeddings: Tensor, dim: int) -> Tensor:
    """The first `dim` dimensions of `(..., D)`, with unit norm again."""
    return functional.normalize(embeddings[..., :dim], dim=-1)


def rationale_loss(logps: Tensor, weights: Tensor | None = None) -> Tensor:
    """
    Cross-entropy of rationale tokens.

    Args:
        logps: `(N,)` log-probabilities of the gold tokens.
        weights: `(N,)` weight of each token, the posterior of its rationale. Default: all 1.

    Returns:
        Scalar, the weighted mean; 0 without tokens.

    >>> round(rationale_loss(torch.tensor([-1.0, -3.0]), torch.tensor([1.0, 0.0])).item(), 4)
    1.0
    """
    if weights is None:
        weights = torch.ones_like(logps)
    return -(logps * weights).sum() / weights.sum().clamp(min=1e-8)
