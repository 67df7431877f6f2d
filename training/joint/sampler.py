"""Put the pairs of an epoch into batches that are made of sub-batches of one task each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from mmemb_r1.training.joint.data import DrawnRow

Ints = npt.NDArray[np.int64]
TRIES = 64  # of a pair to change places, before it stays where it is


class TaskBatchSampler(Sampler[list[DrawnRow]]):
    """
    Draw batches that are made of sub-batches of one task each. They do not depend on the number of processes, of which
    each yields its part.

    Without weights, an epoch has every row once. What tasks have left over, fewer rows than a sub-batch, stands
    together in sub-batches of several tasks. The last two batches share what is left, so that none is nearly empty.
    With weights, or with a number of batches, all batches are full: without replacement until the rows, with weights
    those of a task, are used up, then shuffled anew.

    Args:
        tasks: task name of every row.
        batch_size: rows per batch, of all processes together.
        sub_batch_size: rows of one task that stand together; divides `batch_size`.
        num_batches: length of the sampler. `None`: an epoch.
        task_weights: how often each task is drawn; one that is not named is not. `None`: by `size_exponent`.
            Names that are not there, or no weight at all, are a `ValueError`.
        seed: of the order.
        process: `(i, n)`: yield the i-th (from 0) of n parts of each batch.
        size_exponent: draw tasks by their number of rows to this power. At 1 it is an epoch as above; below, small
            tasks come more often; at 0 all tasks equally often.
        keys: `(N, M)` integers, equal in a column where rows must not meet in a batch, say for the same target. Rows
            change places with others of their task, as far as that is possible. `None`: none must not.

    Raises:
        ValueError: if there are fewer rows than processes, or weights are not what they have to be.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        batch_size: int,
        sub_batch_size: int,
        num_batches: int | None = None,
        task_weights: Mapping[str, float] | None = None,
        seed: int = 0,
        process: tuple[int, int] = (0, 1),
        size_exponent: float = 1.0,
        keys: Ints | None = None,
    ) -> None:
        if len(tasks) < process[1]:
            raise ValueError(
                f"{len(tasks)} pairs can't be parted among {process[1]} processes; start fewer, or give more pairs."
            )
        names, self._codes = np.unique(np.asarray(tasks), return_inverse=True)
        rows_of = np.split(
            np.argsort(self._codes, kind="stable"), np.cumsum(np.bincount(self._codes, minlength=len(names)))[:-1]
        )
        self.rows: list[Ints] = list(rows_of)
        self.weights = None
        if task_weights is not None or size_exponent != 1:
            self.weights = _shares(names.tolist(), [len(rows) for rows in self.rows], task_weights, size_exponent)
        self.batch_size, self.sub_batch_size = batch_size, sub_batch_size
        self.seed, self.epoch, self.process, self.keys = seed, 0, process, keys
        self._sizes = None
        if num_batches is None and self.weights is None:
            self._sizes = epoch_sizes(len(tasks), batch_size, process[1])
            num_batches = len(self._sizes)
        self.num_batches = -(-len(tasks) // batch_size) if num_batches is None else num_batches

    def set_epoch(self, epoch: int) -> None:
        """Give the next epoch another order; `accelerate` calls this before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[DrawnRow]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        start, (index, number) = 0, self.process
        for batch in self._batches(rng):
            own = slice(index * len(batch) // number, (index + 1) * len(batch) // number)
            yield [DrawnRow(row, self.epoch, start + place) for place, row in enumerate(batch.tolist())][own]
            start += len(batch)

    def _batches(self, rng: np.random.Generator) -> Iterator[Ints]:
        """Yield the rows of every batch, of all processes."""
        if self._sizes is not None:
            blocks, rest = shuffled_blocks(self.rows, self.sub_batch_size, rng)
            borders = np.cumsum([0, *self._sizes])
            order = self._apart(np.concatenate([blocks.ravel(), rest]), borders, rng)
            yield from (order[start:stop] for start, stop in pairwise(borders.tolist()))
            return
        rows = self._weighted(rng) if self.weights is not None else self._passes(rng)
        held: Ints = np.empty(0, dtype=np.int64)
        for _ in range(self.num_batches):
            while len(held) < self.batch_size:
                held = np.concatenate([held, next(rows)])
            yield held[: self.batch_size]
            held = held[self.batch_size :]

    def _passes(self, rng: np.random.Generator) -> Iterator[Ints]:
        """Yield all rows, whole sub-batches of them, again and again; what is left over begins the next time."""
        rest: Ints = np.empty(0, dtype=np.int64)
        start = 0  # the place in its batch that comes next
        while True:
            blocks, rest = shuffled_blocks(self.rows, self.sub_batch_size, rng, rest)
            order = blocks.ravel()
            inner = np.arange(self.batch_size - start, len(order), self.batch_size)
            borders = np.array([0, *inner, len(order)])
            yield self._apart(order, borders, rng)
            start = (start + len(order)) % self.batch_size

    def _weighted(self, rng: np.random.Generator) -> Iterator[Ints]:
        """Yield the rows of batches whose sub-batches are of tasks that are drawn by their weights."""
        queues: list[list[int]] = [[] for _ in self.rows]
        while True:
            batch: list[int] = []
            for task in rng.choice(len(self.rows), size=self.batch_size // self.sub_batch_size, p=self.weights):
                while len(queues[task]) < self.sub_batch_size:
                    queues[task].extend(rng.permutation(self.rows[task]).tolist())
                batch += queues[task][: self.sub_batch_size]
                del queues[task][: self.sub_batch_size]
            yield np.array(batch)

    def _apart(self, order: Ints, borders: Ints, rng: np.random.Generator) -> Ints:
        return order if self.keys is None else moved_apart(order, borders, self._codes[order], self.keys[order], rng)


def _shares(
    names: Sequence[str], sizes: Sequence[int], weights: Mapping[str, float] | None, exponent: float
) -> npt.NDArray[np.float64]:
    """Compute how often each task is drawn, as shares of 1."""
    if weights is None:
        found = np.array(sizes, dtype=float) ** exponent
    else:
        if unknown := sorted(set(weights) - set(names)):
            raise ValueError(f"task_weights names {unknown}; the data has the tasks {list(names)}.")
        found = np.array([weights.get(name, 0.0) for name in names], dtype=float)
    if not found.sum() > 0 or (found < 0).any():
        raise ValueError(f"task_weights={dict(weights or {})} have to be non-negative and not all 0.")
    return found / found.sum()


def epoch_sizes(rows: int, batch_size: int, least: int = 1) -> list[int]:
    """
    Tell the sizes of the batches of an epoch: full ones, and two that share the rest.

    Args:
        least: rows of a batch at least. Where two would have fewer, one has all of the rest, above `batch_size`.

    >>> epoch_sizes(20, 8), epoch_sizes(17, 8), epoch_sizes(5, 8), epoch_sizes(9, 8, least=8)
    ([8, 6, 6], [8, 5, 4], [5], [9])
    """
    if rows <= batch_size:
        return [rows]
    full = -(-rows // batch_size) - 2
    rest = rows - full * batch_size
    return [batch_size] * full + ([rest - rest // 2, rest // 2] if rest // 2 >= least else [rest])


def shuffled_blocks(
    rows_of_tasks: Sequence[Ints], size: int, rng: np.random.Generator, first: Ints | None = None
) -> tuple[Ints, Ints]:
    """
    Cut the rows of tasks, in random order, into blocks of one task each, in random order.

    Args:
        rows_of_tasks: the rows of each.
        size: rows of a block.
        first: rows that begin the first block. Default: none.

    Returns:
        `(n, size)` blocks, of one task each but for those that are made of what tasks have left over; and what is left
        over of all, fewer rows than a block.
    """
    first = np.empty(0, dtype=np.int64) if first is None else first
    orders = [rng.permutation(rows) for rows in rows_of_tasks]
    full = np.concatenate([order[: len(order) // size * size].reshape(-1, size) for order in orders])
    full = full[rng.permutation(len(full))]
    parts = [order[len(order) // size * size :] for order in orders]
    if 0 < len(first) + sum(map(len, parts)) < size and len(full):  # it would always come last: mix it with a block
        full, parts = full[:-1], [*parts, full[-1]]
    loose = np.concatenate([first, *(parts[place] for place in rng.permutation(len(parts)))])
    cut = len(loose) // size * size
    mixed = loose[:cut].reshape(-1, size)
    leading = int(bool(len(first)) and bool(len(mixed)))
    others = np.concatenate([full, mixed[leading:]])
    return np.concatenate([mixed[:leading], others[rng.permutation(len(others))]]), loose[cut:]


def moved_apart(order: Ints, borders: Ints, tasks: Ints, keys: Ints, rng: np.random.Generator) -> Ints:
    """
    Exchange rows of one task between batches until rows with equal keys no longer meet in one, as far as that goes.

    Args:
        order: `(N,)` rows.
        borders: `(n + 1,)` where the batches begin, and the end.
        tasks: `(N,)` the task at each place.
        keys: `(N, M)` at each place.

    Returns:
        `(N,)` the same rows in another order. `order`, `tasks` and `keys` stay as they are.
    """
    order, keys = order.copy(), keys.copy()
    batch_of = np.repeat(np.arange(len(borders) - 1), np.diff(borders))
    by_task = np.argsort(tasks, kind="stable")
    ends = np.cumsum(np.bincount(tasks))

    def meets(place: int, batch: int, instead_of: int) -> bool:
        """Whether the row at a place would meet an equal one in a batch that it joins in place of another row."""
        equal = (keys[borders[batch] : borders[batch + 1]] == keys[place]).any(axis=1)
        equal[instead_of - borders[batch]] = False
        return bool(equal.any())

    for batch in range(len(borders) - 1):
        for place in _repeated(keys[borders[batch] : borders[batch + 1]]) + borders[batch]:
            if not meets(place, batch, place):
                continue  # the one that it met has gone
            same = by_task[(ends[tasks[place] - 1] if tasks[place] else 0) : ends[tasks[place]]]
            for other in same[rng.integers(len(same), size=TRIES)]:
                there = batch_of[other]
                if there == batch or meets(other, batch, place) or meets(place, there, other):
                    continue
                pair = [place, other]
                order[pair], keys[pair] = order[pair[::-1]], keys[pair[::-1]]
                break
    return order


def _repeated(keys: Any) -> Ints:
    """Find the places `(n,)` whose key in some column of `(b, M)` has come before."""
    found = np.zeros(len(keys), dtype=bool)
    for column in keys.T:
        again = np.ones(len(keys), dtype=bool)
        again[np.unique(column, return_index=True)[1]] = False
        found |= again
    return np.flatnonzero(found)
