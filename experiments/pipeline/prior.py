"""The prior on Atlas: draw rationales for the training pairs, from Atlas's workers or from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from datasets import Dataset

from experiments.atlas_workers.scripted import POOL
from experiments.atlas_workers.worker import AtlasWorker
from mmemb_r1.atlas import Atlas
from mmemb_r1.training.rationales.checkpoint_worker import CheckpointWorker
from mmemb_r1.training.rationales.draw import draw_rationales
from mmemb_r1.training.rationales.table import read_rationales
from mmemb_r1.training.rationales.worker import RationaleWorker

NUM_SAMPLES = 2  # as in experiments/quickstart/pool.yaml


def draw_pool(atlas: Atlas, pairs: Dataset, folder: Path, seed: int, behaviours: Iterable[str] = POOL) -> Dataset:
    """Draw the rationales of workers of an Atlas, by default the usual four, one of which helps, for some pairs."""
    workers = [AtlasWorker(name, atlas.directory, name, num_samples=NUM_SAMPLES) for name in behaviours]
    return _drawn(workers, pairs, folder, seed)


def draw_of(behaviour: str, num_samples: int, atlas: Atlas, pairs: Dataset, folder: Path, seed: int) -> Dataset:
    """Draw rationales of one of the workers of an Atlas; the first of them are those that the pool has."""
    worker = AtlasWorker(behaviour, atlas.directory, behaviour, num_samples=num_samples)
    return _drawn([worker], pairs, folder, seed)


def draw_own(checkpoint: Path, name: str, pairs: Dataset, folder: Path, seed: int) -> Dataset:
    """Sample rationales from a checkpoint; kept in a folder."""
    worker = CheckpointWorker(
        name=name, model=str(checkpoint), num_samples=NUM_SAMPLES, max_tokens=64, batch_size=32, device="cpu"
    )
    return _drawn([worker], pairs, folder, seed)


def _drawn(workers: Sequence[RationaleWorker], pairs: Dataset, folder: Path, seed: int) -> Dataset:
    draw_rationales(pairs, workers, folder, seed=seed, progress=False)
    return read_rationales(folder)
