"""Means with intervals, and differences of means, over queries that come in clusters: pure functions."""

from __future__ import annotations

from mmemb_r1.evaluation.statistics.bootstrap import (
    Interval,
    bootstrap_means,
    cluster_draws,
    clustered_bootstrap,
    clustered_means,
    interval_of,
    numbered,
)
from mmemb_r1.evaluation.statistics.paired import Difference, holm, paired_difference, two_sided_p

__all__ = [
    "Difference",
    "Interval",
    "bootstrap_means",
    "cluster_draws",
    "clustered_bootstrap",
    "clustered_means",
    "holm",
    "interval_of",
    "numbered",
    "paired_difference",
    "two_sided_p",
]
