"""Lets the evaluator judge what the workers said, in as many processes as there are threads to work with."""

from __future__ import annotations

import sys
from concurrent.futures import FIRST_EXCEPTION, wait
from pathlib import Path

from datasets import Dataset

from experiments.pipeline.posterior import score_rationales
from experiments.pipeline.processes import process_pool
from experiments.pipeline.tasks import MULTI_HOP, of_tasks
from mmemb_r1.atlas import load_atlas
from mmemb_r1.runs import progress_bar
from mmemb_r1.training.rationales.table import read_rationales

LOG_FILE = "judging.log"


def judge_in_parts(atlas: Path, rationales: Path, evaluator: Path, scores: Path, jobs: int) -> None:
    """
    Judge all rationales; those that are judged already are not judged again.

    Args:
        atlas: the folder of the Atlas.
        rationales: the folder that they were drawn into.
        evaluator: a checkpoint.
        scores: the folder that gets what it says, and a report.
        jobs: processes of one thread each; with 1 everything is done in this one.
    """
    if jobs == 1:
        score_part(atlas, rationales, evaluator, scores, (1, 1), progress=None)
        return
    scores.mkdir(parents=True, exist_ok=True)
    with process_pool(jobs, 1, scores / LOG_FILE) as pool, progress_bar(sys.stderr.isatty()) as bar:
        # several processes of one thread each are faster than one of several threads: the matrices are small
        waiting = {
            pool.submit(score_part, atlas, rationales, evaluator, scores, (part, jobs)) for part in range(1, jobs + 1)
        }
        shown = bar.add_task("files of judgements", total=None)
        while waiting:
            done, waiting = wait(waiting, timeout=1, return_when=FIRST_EXCEPTION)
            for one in done:
                one.result()
            bar.update(shown, completed=len(list((scores / "shards").glob("*.parquet"))))


def score_part(
    atlas: Path,
    rationales: Path,
    evaluator: Path,
    scores: Path,
    part: tuple[int, int],
    progress: bool | None = False,
) -> None:
    """The i-th of n parts."""
    pairs = pooled_pairs(load_atlas(atlas).pairs["train"])
    score_rationales(pairs, read_rationales(rationales), evaluator, scores, part, progress=progress)


def pooled_pairs(pairs: Dataset) -> Dataset:
    """The pairs that workers are asked about: questions of several steps."""
    return of_tasks(pairs, MULTI_HOP)
