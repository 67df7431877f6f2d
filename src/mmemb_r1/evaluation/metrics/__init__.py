"""
Retrieval metrics: pure functions of arrays, and of scores by id.

    rank            ranks, and what follows from them; ties are lost
    graded          metrics of whole rankings, with grades and two ways to treat ties
    scored_runs     the same of scores by the ids of queries and candidates
    cosine          scores from vectors
    score_rows, tie_groups      what these are made of
"""

from __future__ import annotations

from mmemb_r1.evaluation.metrics.cosine import cosine_scores, unit_rows
from mmemb_r1.evaluation.metrics.graded import METRICS, per_query, per_query_of
from mmemb_r1.evaluation.metrics.rank import hit_at_k, mrr, ranks
from mmemb_r1.evaluation.metrics.scored_runs import score_run

__all__ = [
    "METRICS",
    "cosine_scores",
    "hit_at_k",
    "mrr",
    "per_query",
    "per_query_of",
    "ranks",
    "score_run",
    "unit_rows",
]
