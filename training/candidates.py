"""Find what the target of each pair competes with: negatives of its own, and a sample of the targets of its task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from mmemb_r1.content import content_key, given_parts
from mmemb_r1.seeding import random_order, seeded_random
from mmemb_r1.training.tables import StoredInputs, check_pairs, number_distinct, stored_column, tasks_of

POOL = 16  # samples of a task are drawn from so many times their size: that bounds what is ever embedded
REMEMBERED = 256  # rows: those of a batch are asked for several times


class TargetCandidates:
    """
    Number the distinct candidates of a pairs table, and tell with which of them each pair competes.

    Inputs are compared by their content, however a table stores them. A candidate is no negative of a pair if it is a
    target of the same query in any of the tables. What is held in memory are keys, not the inputs.

    Args:
        pairs: a table with `query` and `target`, and optionally `task` and `negatives`.
        more: a table with `target`, whose targets are candidates too, and optionally `task`, and `query`: its right
            answers count as right.
        number: so many negatives of a query are drawn from the targets of its task, beside its own hard ones, so that
            a probability among them does not depend on the size of the table. Default: all.
        seed: of the draw, with the query: neither the order of the table nor the process counts.

    Raises:
        ValueError: if `more` has no targets, or a pair has no negative.
    """

    def __init__(self, pairs: Dataset, more: Dataset | None = None, number: int | None = None, seed: int = 0) -> None:
        if more is not None:
            check_pairs(more, ("target",), "the table of negatives")
        tables = [pairs] if more is None else [pairs, more]
        self.number, self._seed = number, seed
        self._targets = [StoredInputs(table, "target") for table in tables]
        self._negatives = stored_column(pairs, "negatives") if "negatives" in pairs.column_names else None
        self._places = [(place, row, 0) for place, table in enumerate(tables) for row in range(len(table))]
        keys = [content_key(target) for targets in self._targets for target in targets]
        num_targets = len(keys)
        self._own: dict[int, range] = {}  # row -> where its hard negatives are among the keys
        for row in range(len(pairs) if self._negatives is not None else 0):
            own = self._negatives_of(row)
            self._own[row] = range(len(keys), len(keys) + len(own))
            self._places += [(-1, row, place) for place in range(len(own))]
            keys += [content_key(value) for value in own]
        numbers, first = number_distinct(keys)
        self._numbers = np.array(numbers)  # (all,) of each key
        self._places = [self._places[place] for place in first]
        self.keys = [keys[place] for place in first]
        self._tasks = tasks_of(pairs)
        tasks = [task for table in tables for task in tasks_of(table)]
        self._pools = self._drawn_pools(tasks, self._numbers[:num_targets])
        self._queries = [content_key(query) for query in StoredInputs(pairs, "query")]
        self._right = self._right_answers(tables)
        self._check()
        self.of = lru_cache(REMEMBERED)(self._candidates_of)

    def __len__(self) -> int:
        """Count the distinct candidates."""
        return len(self.keys)

    def __getitem__(self, number: int) -> Any:
        """Read a candidate."""
        table, row, place = self._places[number]
        return self._negatives_of(row)[place] if table < 0 else self._targets[table][row]

    def _candidates_of(self, row: int) -> list[int]:
        """`of(row)` returns the numbers of what the target of a row of `pairs` competes with, itself first."""
        right, hard = self._right[self._queries[row]], self._hard(row)
        taken, pool = right.union(hard), self._pools[self._tasks[row]]
        order = random_order(len(pool), seeded_random(self._seed, "candidates", self._queries[row].hex()))
        places = range(len(pool)) if self.number is None else order
        drawn = islice((int(pool[place]) for place in places if int(pool[place]) not in taken), self.number)
        return [int(self._numbers[row]), *hard, *drawn]

    def _hard(self, row: int) -> list[int]:
        own = self._own.get(row, range(0))
        return sorted(set(self._numbers[own.start : own.stop].tolist()) - self._right[self._queries[row]])

    def _negatives_of(self, row: int) -> list[Any]:
        """Read the hard negatives of a row."""
        return [given_parts(value) for value in (self._negatives[row].as_py() or [])] if self._negatives else []

    def _drawn_pools(self, tasks: Sequence[str], numbers: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
        """Find the distinct targets of each task that samples are drawn from, in an order that the seed gives."""
        of_task: dict[str, set[int]] = defaultdict(set)
        for task, number in zip(tasks, numbers.tolist(), strict=True):
            of_task[task].add(number)
        if self.number is None:
            return {task: np.array(sorted(own)) for task, own in of_task.items()}
        salt = repr(self._seed).encode()[:16]
        rank = [blake2b(key, digest_size=8, salt=salt).digest() for key in self.keys]
        limit = POOL * self.number
        return {task: np.array(sorted(own, key=rank.__getitem__)[:limit]) for task, own in of_task.items()}

    def _right_answers(self, tables: Sequence[Dataset]) -> dict[bytes, set[int]]:
        """Find the targets of each query of `pairs`, in all tables."""
        right: dict[bytes, set[int]] = {query: set() for query in self._queries}
        start = 0
        for place, table in enumerate(tables):
            if place == 0 or "query" in table.column_names:
                queries = self._queries if place == 0 else map(content_key, StoredInputs(table, "query"))
                for row, query in enumerate(queries):
                    if query in right:
                        right[query].add(int(self._numbers[start + row]))
            start += len(table)
        return right

    def _check(self) -> None:
        for row, task in enumerate(self._tasks):
            right = self._right[self._queries[row]]
            if not self._hard(row) and all(int(number) in right for number in self._pools[task]):
                raise ValueError(
                    f"row {row} of the pairs table, counted from 0, has no negative: its task {task!r} has no other "
                    "target. Add pairs or the column 'negatives', or leave the row out."
                )
