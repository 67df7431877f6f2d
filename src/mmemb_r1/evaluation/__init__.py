"""Metrics, the runner that scores a model on retrieval tasks, and the tables that report its results.

Importing it imports none of them: each name is looked up when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmemb_r1._lazy import lazy_attributes

if TYPE_CHECKING:
    from mmemb_r1.evaluation.atlas_tasks import evaluate
    from mmemb_r1.evaluation.report import results_table
    from mmemb_r1.evaluation.results import load_results, save_results
    from mmemb_r1.evaluation.runner import run_evaluation
    from mmemb_r1.evaluation.settings import Settings
    from mmemb_r1.evaluation.tasks import RetrievalTask

__all__ = [
    "RetrievalTask",
    "Settings",
    "evaluate",
    "load_results",
    "results_table",
    "run_evaluation",
    "save_results",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "RetrievalTask": "mmemb_r1.evaluation.tasks",
        "Settings": "mmemb_r1.evaluation.settings",
        "evaluate": "mmemb_r1.evaluation.atlas_tasks",
        "load_results": "mmemb_r1.evaluation.results",
        "results_table": "mmemb_r1.evaluation.report",
        "run_evaluation": "mmemb_r1.evaluation.runner",
        "save_results": "mmemb_r1.evaluation.results",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
