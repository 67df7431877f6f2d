"""Atlas, and which of its tasks are what in this experiment."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from datasets import Dataset

from mmemb_r1.atlas import Atlas, load_atlas

FLAGS = tuple(f"flag-{relation}" for relation in ("capital", "region", "currency", "language", "tld"))
NEIGHBOURS = ("neighbour-capital", "neighbour-currency")
MULTI_HOP = (*FLAGS, *NEIGHBOURS, "fact-flag")
# Those whose answers are pictures: something can be thought about them too.
PICTURE_TARGETS = ("name-picture", "fact-flag")
# Those whose rationales come from the pool of workers; the others are rehearsed with their own.
POOLED = (*MULTI_HOP, "name-picture")


def atlas_of(output: Path) -> Atlas:
    """The Atlas that the warm-up was done on."""
    return load_atlas(output / "atlas")


def of_tasks(pairs: Dataset, tasks: Collection[str]) -> Dataset:
    """The pairs of some tasks, as a table of its own."""
    rows = [row for row, task in enumerate(pairs["task"]) if task in tasks]
    return pairs.select(rows).flatten_indices()
