"""
MMEB-V2: its 78 tasks as data, read from a local copy, and what a run over some or all of them may claim.

    find_tasks(folder) -> list[str]                          names of the tasks whose annotations are in the folder
    load_tasks(folder, names=None, *, num_frames=8) -> Sequence[RetrievalTask]      read when asked for, one by one
    download_task(name, folder, *, media=True, revision=None) -> Path               only when called

    task_named(name) -> MMEBTask, TASKS, VARIANTS, select(names) -> list[MMEBTask]  the catalogue

    scores_of(results, mode) -> dict[str, TaskScore]         of what `evaluate` writes
    overall(scores) -> float                                 mean of the 78; ValueError says why not
    group_mean(scores, "image" | "image/classification") -> float       the same of a modality or a meta-task
    group_means(scores) -> dict[str, float]                  of all the groups that are complete

    submission(results, mode, metadata) -> dict              the leaderboard's JSON
    validate_submission(submission), write_submission(submission, path)             checked; written if all is right
    check_tasks(names), check_metadata(metadata)             what can be checked of it before a run

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
