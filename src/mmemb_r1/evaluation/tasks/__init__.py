"""
What is asked of an embedding model: retrieval tasks, whatever they come from.

    retrieval   the task itself, and parts of one
    atlas       tasks of Atlas's tables
    pairs       tasks of a table of pairs

Those of MMEB-V2 are in `mmemb_r1.evaluation.mmeb`.
"""

from __future__ import annotations

from mmemb_r1.evaluation.tasks.retrieval import RetrievalTask, clusters_of, first_queries, some_queries

__all__ = [
    "RetrievalTask",
    "clusters_of",
    "first_queries",
    "some_queries",
]
