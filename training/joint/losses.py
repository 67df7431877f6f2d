"""Compute the loss terms of the joint phase, as functions of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mmemb_r1.objective import target_probability

PathPair = tuple[int, int]
PathWeights = Mapping[PathPair, float]


class PathBatch(NamedTuple):
    """Hold everything that the contrastive terms of one batch are made of."""

    queries: Tensor  # (B, K, D) embeddings per path, unit norm
    query_paths: Tensor  # (B, K) bool, which of them exist; path 0 always does
    targets: Tensor  # (B, L, D) of each query
    target_paths: Tensor  # (B, L) bool
    negatives: Tensor  # (N, D) direct embeddings of hard negatives
    query_keys: Tensor  # (B,) integers, equal where the queries are the same
    target_keys: Tensor  # (B,)
    negative_keys: Tensor  # (N,), equal to a target's where a negative is a target

    def query(self, path: int) -> Tensor:
        """`(B, D)` after `path` rationales; the direct vector where a query has not so many."""
        return _of_path(self.queries, self.query_paths, path)

    def candidates(self, path: int) -> Tensor:
        """`(B + N, D)` the targets after `path` rationales, likewise, and the hard negatives."""
        return torch.cat([_of_path(self.targets, self.target_paths, path), self.negatives])

    def anchors(self, paths: PathPair, one_sided: bool = False) -> Tensor:
        """
        Find the rows `(B,)` bool that are anchors of a pair of paths: those that have both.

        Args:
            one_sided: also those with a path after a rationale on one side and no rationale at all on the other, whose
                direct vector stands for it.
        """
        query, target = (
            mask[:, path] if path < mask.shape[1] else torch.zeros_like(mask[:, 0])
            for mask, path in zip((self.query_paths, self.target_paths), paths, strict=True)
        )
        if not one_sided or 0 in paths:
            return query & target
        bare_query, bare_target = (mask.sum(dim=1) == 1 for mask in (self.query_paths, self.target_paths))
        return query & target | query & bare_target | bare_query & target


class PathTerm(NamedTuple):
    """Hold the loss of one pair of paths, row by row."""

    query_to_target: Tensor  # (B,) cross-entropy of the target among all candidates
    target_to_query: Tensor | None  # (B,) cross-entropy of the query among all queries; `None` in one direction
    hit: Tensor  # (B,) bool, whether the target comes before every negative; ties do not count
    valid: Tensor  # (B,) bool, rows with both paths; others are no anchors, but negatives with their direct vector

    @property
    def losses(self) -> Tensor:
        """InfoNCE of each row `(B,)`: the mean over the directions."""
        if self.target_to_query is None:
            return self.query_to_target
        return (self.query_to_target + self.target_to_query) / 2

    @property
    def loss(self) -> Tensor:
        """InfoNCE: the mean over valid rows; 0 if no row is valid."""
        return mean_where(self.losses, self.valid)


class PathTerms(NamedTuple):
    """Hold the contrastive terms of a batch."""

    at: dict[tuple[int, int, int], PathTerm]  # (dimensions, query path, target path) -> term
    num_negatives: Tensor  # (B,) candidates beside the target that count
    num_masked: Tensor  # (B,) candidates that only their score made false negatives


def path_terms(
    batch: PathBatch,
    paths: Sequence[PathPair],
    temperature: float,
    dims: Sequence[int] | None = None,
    score_mask_margin: float | None = None,
    chunk_size: int = 64,
    symmetric: bool = True,
    one_sided: bool = False,
) -> PathTerms:
    """
    Compute InfoNCE per pair of paths (a, b): query after a rationales against target after b.

    Negatives of a query are all candidates but those of the same query or the same target, and, with a margin, those
    whose direct score is above the positive's by more than that. Similarities are held `chunk_size` rows at a time:
    in the backward pass they are computed again. Pairs of paths that no row has are left out. By default the terms are
    taken at full width, and no other `dims`. Source: a direct and a reasoning path are the paper's; one space for all
    pairs of paths, and the masks, are ours.

    Args:
        symmetric: whether targets look for their queries, too. Without, it is InfoNCE in one direction
            (arXiv 1807.03748).
        one_sided: whether a pair with a rationale on one side is an anchor where both have one, see
            [`PathBatch.anchors`].
    """
    valid = {pair: batch.anchors(pair, one_sided) for pair in paths}
    wanted = [(dim, *pair) for dim in dims or [batch.queries.shape[-1]] for pair in valid if bool(valid[pair].any())]
    queries = {(dim, a): matryoshka(batch.query(a), dim) for dim, a, _ in wanted}
    candidates = {(dim, b): matryoshka(batch.candidates(b), dim) for dim, _, b in wanted}
    num_rows = len(batch.queries)

    def of_rows(rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        for_queries, for_targets, masked = ignored(batch, rows, score_mask_margin)
        losses, hits = [], []
        for dim, a, b in wanted:
            query, candidate = queries[dim, a], candidates[dim, b]
            to_target, hit = cross_entropy(query[rows], candidate, for_queries, rows, temperature)
            directions = [to_target]
            if symmetric:
                directions.append(cross_entropy(candidate[rows], query, for_targets, rows, temperature)[0])
            losses.append(torch.stack(directions))
            hits.append(hit)
        return torch.stack(losses), torch.stack(hits), (~for_queries).sum(dim=1) - 1, masked

    parts = []
    for start in range(0, num_rows, chunk_size):
        rows = slice(start, min(start + chunk_size, num_rows))
        again = torch.is_grad_enabled() and num_rows > chunk_size
        parts.append(checkpoint(of_rows, rows, use_reentrant=False) if again else of_rows(rows))
    losses, hits, num_negatives, num_masked = (torch.cat(part, dim=-1) for part in zip(*parts, strict=True))
    at = {
        # shapes of the two: (T, directions, B) and (T, B)
        key: PathTerm(losses[place, 0], losses[place, 1] if symmetric else None, hits[place], valid[key[1:]])
        for place, key in enumerate(wanted)
    }
    return PathTerms(at, num_negatives, num_masked)


def _of_path(vectors: Tensor, mask: Tensor, path: int) -> Tensor:
    """Take `(B, D)` of `(B, K, D)`; the direct vectors where there is no such path."""
    if path >= vectors.shape[1]:
        return vectors[:, 0]
    return torch.where(mask[:, path, None], vectors[:, path], vectors[:, 0])


def ignored(batch: PathBatch, rows: slice, score_mask_margin: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """
    Find what is neither positive nor negative for c rows, from keys and direct scores, without gradient.

    Returns:
        `(c, B + N)` bool, candidates that the queries ignore; `(c, B)` bool, queries that the targets ignore;
        `(c,)` number of candidates that only the score rules out. A row's own query and target are never ignored.
    """
    same_query = batch.query_keys[rows, None] == batch.query_keys  # (c, B)
    same_target = batch.target_keys[rows, None] == torch.cat([batch.target_keys, batch.negative_keys])  # (c, B + N)
    size = same_query.shape[1]
    for_queries = functional.pad(same_query, (0, len(batch.negatives))) | same_target
    for_targets = same_query | same_target[:, :size]
    masked = torch.zeros_like(for_queries)
    if score_mask_margin is not None:
        with torch.no_grad():
            queries, candidates = batch.query(0), batch.candidates(0)
            limit = (queries * candidates[:size]).sum(dim=-1)[rows, None] + score_mask_margin  # (c, 1)
            masked = (queries[rows] @ candidates.T > limit) & ~for_queries
            for_queries = for_queries | masked
            for_targets = for_targets | (candidates[rows] @ queries.T > limit)
    own = torch.arange(size, device=same_query.device)
    for_queries[own[: rows.stop - rows.start], own[rows]] = False
    for_targets[own[: rows.stop - rows.start], own[rows]] = False
    return for_queries, for_targets, masked.sum(dim=1)


def cross_entropy(
    anchors: Tensor, candidates: Tensor, ignored: Tensor, rows: slice, temperature: float
) -> tuple[Tensor, Tensor]:
    """
    Compute the cross-entropy of anchors' counterparts (a query's target, a target's query) among the candidates.

    Args:
        anchors, candidates: `(c, D)` and `(C, D)` unit vectors.
        ignored: `(c, C)` bool, candidates that do not compete; never the counterpart.
        rows: the counterparts' places among the candidates, one after another.

    Returns:
        `(c,)` losses, and `(c,)` bool, whether the counterpart beats all others.

    >>> cross_entropy(torch.eye(2), torch.eye(2), torch.zeros(2, 2, dtype=torch.bool), slice(0, 2), 1.0)[0]
    tensor([0.3133, 0.3133])
    """
    scores = (anchors @ candidates.T / temperature).masked_fill(ignored, -torch.inf)  # (c, C)
    own = torch.arange(rows.start, rows.stop, device=scores.device)
    with torch.no_grad():
        target = scores.gather(1, own[:, None]).squeeze(1)  # (c,)
        hit = target > scores.scatter(1, own[:, None], -torch.inf).amax(dim=1)
    return -target_probability(scores, own, temperature=1, log=True, fused=False), hit


def mean_where(values: Tensor, valid: Tensor) -> Tensor:
    """
    Average `values` `(B,)` where `valid` `(B,)` is true; 0, with a gradient of 0, if it is nowhere.

    >>> mean_where(torch.tensor([1.0, 5.0]), torch.tensor([True, False]))
    tensor(1.)
    """
    return torch.where(valid, values, 0.0).sum() / valid.sum().clamp(min=1)


def matryoshka(embeddings: Tensor, dim: int) -> Tensor:
    """Cut `(..., D)` to its first `dim` dimensions, with unit norm again."""
    return functional.normalize(embeddings[..., :dim], dim=-1)


def rationale_loss(logps: Tensor, weights: Tensor, total: Tensor | float) -> Tensor:
    """
    Compute the share that rationale tokens have in the weighted mean cross-entropy of a batch, whose weights sum to
    `total`, from log-probabilities `(N,)` and weights `(N,)` of the tokens.

    >>> round(rationale_loss(torch.tensor([-1.0, -3.0]), torch.tensor([1.0, 0.0]), 1.0).item(), 4)
    1.0
    """
    return -(logps * weights).sum() / total
