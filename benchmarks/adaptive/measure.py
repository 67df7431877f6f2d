"""Asks a model the questions of a split, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset

from experiments.pipeline.answers import ANSWERS_FILE, measure_answers
from mmemb_r1.runs import made_whole


def answers_of(checkpoint: Path, pairs: Dataset, candidates: Dataset, folder: Path) -> dict[str, list[Any]]:
    """
    What `measure_answers` says of one model, as columns with a row per query. Kept in a folder.

    Args:
        checkpoint: the model's folder.
        pairs: whose queries are asked.
        candidates: of the Atlas.
        folder: where the answers are, or will be.
    """

    def make(made: Path) -> None:
        made.mkdir(parents=True)
        measure_answers(checkpoint, pairs, candidates, made)

    made_whole(folder, make)
    return read_answers(folder)


def read_answers(folder: Path) -> dict[str, list[Any]]:
    """The columns of a folder of answers."""
    return pq.read_table(folder / ANSWERS_FILE).to_pydict()
