"""Batches for the joint phase: sub-batches of one task each, tasks drawn by weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch.utils.data import Sampler

from mmemb_r1.training.joint_pairs import Visit


class TaskBatchSampler(Sampler[list[Visit]]):
    """
    Endless variety in a fixed number of batches: each consists of sub-batches of one task, drawn without replacement
    until a task's pairs are used up, then shuffled anew.

    Every process draws the same batches and yields its own part of each: a batch is the same whatever the number of
    processes.

    Args:
        tasks: task name of every row.
        batch_size: rows per batch, of all processes together.
        sub_batch_size: rows of one task that stand together; divides `batch_size`.
        num_batches: length of the sampler.
        task_weights: how often each task is drawn. `None`: by its number of rows. Tasks that are not named are not
            drawn.
        seed: of the order.
        process: `(i, n)`: yield the i-th (from 0) of n parts of each batch.

    Raises:
        ValueError: if a weight names a task that is not there, or nothing has a weight.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        batch_size: int,
        sub_batch_size: int,
        num_batches: int,
        task_weights: Mapping[str, float] | None = None,
        seed: int = 0,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        names, codes = np.unique(np.asarray(tasks), return_inverse=True)
        self.rows = [np.flatnonzero(codes == code) for code in range(len(names))]
        if task_weights is None:
            weights = np.array([len(rows) for rows in self.rows], dtype=float)
        else:
            unknown = sorted(set(task_weights) - set(names.tolist()))
            if unknown:
                raise ValueError(f"task_weights names {unknown}; the data has the tasks {names.tolist()}.")
            weights = np.array([task_weights.get(name, 0.0) for name in names.tolist()], dtype=float)
        if not weights.sum() > 0 or (weights < 0).any():
            raise ValueError(f"task_weights={dict(task_weights or {})} have to be non-negative and not all 0.")
        self.weights = weights / weights.sum()
        self.batch_size, self.sub_batch_size = batch_size, sub_batch_size
        self.num_batches, self.seed, self.epoch = num_batches, seed, 0
        index, number = process
        self.own = slice(index * batch_size // number, (index + 1) * batch_size // number)

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch, so that its order differs from the last one's."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[Visit]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        queues: list[list[int]] = [[] for _ in self.rows]
        for start in range(0, self.num_batches * self.batch_size, self.batch_size):
            batch: list[int] = []
            for task in rng.choice(len(self.rows), size=self.batch_size // self.sub_batch_size, p=self.weights):
                while len(queues[task]) < self.sub_batch_size:
                    queues[task].extend(rng.permutation(self.rows[task]).tolist())
                batch += queues[task][: self.sub_batch_size]
                del queues[task][: self.sub_batch_size]
            yield [Visit(row, self.epoch, start + place) for place, row in enumerate(batch)][self.own]
