"""
Read MMEB-V2's 78 tasks from a local copy, and say what a run over some or all of them may claim. See docs/mmeb.md.

A `RetrievalTask` from here has `groups={"modality": "image", "meta_task": "image/classification"}`: both are keys of a
summary as they are. `data` has the dataset's id, configuration and split, its revision where known, the numbers of
queries expected and found, and a content digest.
"""

from __future__ import annotations

from mmemb_r1.evaluation.mmeb.catalogue import TASKS, VARIANTS, MMEBTask, select, task_named
from mmemb_r1.evaluation.mmeb.claims import TaskScore, group_mean, group_means, overall, scores_of
from mmemb_r1.evaluation.mmeb.download import download_task
from mmemb_r1.evaluation.mmeb.loading import find_tasks, load_tasks
from mmemb_r1.evaluation.mmeb.submission import (
    check_metadata,
    check_tasks,
    submission,
    validate_submission,
    write_submission,
)

__all__ = [
    "TASKS",
    "VARIANTS",
    "MMEBTask",
    "TaskScore",
    "check_metadata",
    "check_tasks",
    "download_task",
    "find_tasks",
    "group_mean",
    "group_means",
    "load_tasks",
    "overall",
    "scores_of",
    "select",
    "submission",
    "task_named",
    "validate_submission",
    "write_submission",
]
