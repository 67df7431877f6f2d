"""Find the share of inputs that should think: chosen on some countries, evaluated on the others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mmemb_r1.evaluation.invocation import SHARES, Answers, Floats, choice_scores
from mmemb_r1.evaluation.statistics import bootstrap_means

NUM_SPLITS = 10


class BestShare(NamedTuple):
    """
    Attributes:
        scores: `(N,)` of each query at thresholds that were chosen without it, the mean over the splits.
        shares: those that were chosen, two per split.
    """

    scores: Floats
    shares: tuple[float, ...]


def cross_fitted(answers: Answers, num_splits: int = NUM_SPLITS, seed: int = 0) -> BestShare:
    """
    Score the best share of queries that think, on queries that it was not chosen on.

    Whatever the queries are about is split into halves at random. On one half the share of `SHARES` is chosen whose
    mean score over tasks is highest, the lowest of equal ones; its threshold decides on the other half. Then the other
    way round, and again with other halves.

    Args:
        answers: N queries, with `gate_prob`.
        num_splits: how often. Default: 10.
        seed: of the splits.

    Raises:
        ValueError: if all queries are about the same.
    """
    clusters = sorted(set(answers.cluster.tolist()))
    if len(clusters) < 2:
        raise ValueError(f"all queries are about {clusters[0]!r}: there is nothing to split; expected 2 or more")
    rng = np.random.default_rng(seed)
    total, shares = np.zeros(len(answers.task)), []
    for _ in range(num_splits):
        drawn = rng.permutation(len(clusters))[: len(clusters) // 2]
        half = np.isin(answers.cluster, [clusters[place] for place in drawn])
        for some in (half, ~half):
            seen, others = answers.where(some), answers.where(~some)
            share = best_of(seen)
            shares.append(share)
            total[~some] += choice_scores(others, others.thinks(seen.threshold(share)))
    return BestShare(total / num_splits, tuple(shares))


def best_of(answers: Answers) -> float:
    """The share whose mean score over tasks is highest on these queries, the lowest of equal ones."""
    decided = np.stack([choice_scores(answers, answers.thinks(answers.threshold(share))) for share in SHARES], axis=1)
    mean, _ = bootstrap_means(decided, answers.cluster.tolist(), answers.task.tolist(), num_samples=1)
    return SHARES[int(np.argmax(mean))]
