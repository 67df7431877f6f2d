"""Index the pairs of a table by content, and draw wrong pairs to try a rationale on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset

from mmemb_r1.content import content_key
from mmemb_r1.modeling.inputs_mmemb_r1 import PARTS
from mmemb_r1.seeding import random_order, seeded_random
from mmemb_r1.training.rationales.worker import SIDES
from mmemb_r1.training.tables import PAIR_COLUMNS, StoredInputs, check_pairs, stored_column, stored_digest


@dataclass(frozen=True)
class PairIndex:
    """
    Args:
        ids: pair id of each row.
        tasks: task of each row; `""` where the table names none.
        content: side -> `(N,)` numbers, equal (on both sides and in `negatives`) where inputs are.
        negatives: the same numbers for the pairs' own negatives.
        fingerprint: equal for tables with the same pairs in the same order.
    """

    ids: list[str]
    tasks: list[str]
    content: dict[str, npt.NDArray[np.int64]]
    negatives: list[tuple[int, ...]]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.ids)


def other_side(side: str) -> str:
    """
    >>> other_side("query"), other_side("target")
    ('target', 'query')
    """
    return SIDES[1 - SIDES.index(side)]


class Partners:
    """
    Which contents of the other side belong to each content of a side, anywhere in the table.

    Args:
        index: of the pairs table.
        side: `"query"` or `"target"`.
    """

    def __init__(self, index: PairIndex, side: str) -> None:
        couples = np.stack([index.content[side], index.content[other_side(side)]], axis=1)
        self._anchors, self._others = np.unique(couples, axis=0).T  # sorted by anchor, then by partner

    def of(self, anchor: int) -> npt.NDArray[np.int64]:
        """The numbers of an anchor's partners, sorted."""
        first, last = np.searchsorted(self._anchors, [anchor, anchor + 1])
        return self._others[first:last]

    def hold(self, anchor: int, other: int) -> bool:
        """Whether the two are known to match."""
        partners = self.of(anchor)
        place = int(np.searchsorted(partners, other))
        return place < len(partners) and int(partners[place]) == other


def index_pairs(pairs: Dataset) -> PairIndex:
    """
    Read a pairs table once, row by row and without decoding a picture.

    Args:
        pairs: columns `pair_id`, `query`, `target` and, optionally, `task` and `negatives`.

    Raises:
        ValueError: if the table is none of pairs (see `check_pairs`): a pair lacks its target, say; or its negatives
            are no lists of inputs.
    """
    check_pairs(pairs, PAIR_COLUMNS)
    numbers: dict[bytes, int] = {}
    digest = blake2b(digest_size=16)

    def number(value: Any) -> int:
        digest.update(stored_digest(value))
        return numbers.setdefault(content_key(value), len(numbers))

    ids = stored_column(pairs, "pair_id").to_pylist()
    tasks = [""] * len(ids)
    if "task" in pairs.column_names:
        tasks = [task or "" for task in stored_column(pairs, "task").to_pylist()]
    content = {
        side: np.fromiter(map(number, StoredInputs(pairs, side)), dtype=np.int64, count=len(ids)) for side in SIDES
    }
    negatives = [tuple(map(number, own)) for own in _own_negatives(pairs)]
    digest.update(repr((ids, tasks, [len(own) for own in negatives])).encode())
    return PairIndex(ids, tasks, content, negatives, digest.hexdigest())


def _own_negatives(pairs: Dataset) -> Iterator[list[dict[str, Any]]]:
    """The pairs' own negatives, none if the table has no such column."""
    if "negatives" not in pairs.column_names:
        yield from ([] for _ in range(len(pairs)))
        return
    column = stored_column(pairs, "negatives")
    kind = getattr(column.type, "value_type", column.type)
    if not pa.types.is_null(kind) and not (kind != column.type and pa.types.is_struct(kind)):
        raise ValueError(
            f"the column 'negatives' of the pairs table holds {column.type}; allowed: a list of inputs, each an "
            f"object with any of the keys {', '.join(PARTS)}"
        )
    yield from (own.as_py() or [] for own in column)


@dataclass(frozen=True)
class Negatives:
    """
    Inputs of the other side that do not match.

    Args:
        own: places in the pair's own `negatives`.
        rows: rows of the pairs table whose input of the other side is meant.
    """

    own: tuple[int, ...]
    rows: tuple[int, ...]


class NegativeSampler:
    """
    Draws the negatives of a pair's side, of different content each.

    First come the pair's own negatives (for its query), then partners of other pairs of its task, then of other
    tasks. What is known to match is never drawn: the content of the partner, and of every partner that an identical
    input has anywhere in the table.

    Args:
        index: of the pairs table.
        num_negatives: how many to draw.
        seed: the draw is a pure function of it, the pair's id, the side and the table.
    """

    def __init__(self, index: PairIndex, num_negatives: int = 4, seed: int = 0) -> None:
        self.index, self.num_negatives, self.seed = index, num_negatives, seed
        self._partners = {side: Partners(index, side) for side in SIDES}
        self._all = {side: _first_rows(index.content[side], range(len(index))) for side in SIDES}
        rows_of_task: dict[str, list[int]] = {}
        for row, task in enumerate(index.tasks):
            rows_of_task.setdefault(task, []).append(row)
        self._of_task = {
            side: {task: _first_rows(index.content[side], rows) for task, rows in rows_of_task.items()}
            for side in SIDES
        }

    def draw(self, row: int, side: str) -> Negatives:
        """
        Args:
            row: of the pair.
            side: `"query"` draws targets, `"target"` queries.

        Raises:
            ValueError: if the table has too few.
        """
        drawn = list(islice(self._candidates(row, side), self.num_negatives))
        if len(drawn) < self.num_negatives:
            raise ValueError(
                f"the pair {self.index.ids[row]!r} has {len(drawn)} possible negatives for its {side}, but "
                f"num_negatives={self.num_negatives}: the table has too few pairs with other partners. Lower the "
                "number or add pairs"
            )
        own = tuple(place for place, is_own in drawn if is_own)
        return Negatives(own, tuple(place for place, is_own in drawn if not is_own))

    def check(self, places: Iterable[tuple[int, str]]) -> None:
        """
        Make sure that there are enough for these rows and sides, without drawing them all.

        Raises:
            ValueError: naming the first that has too few.
        """
        for row, side in places:
            known = len(self._partners[side].of(self.index.content[side][row]))
            if len(self._all[other_side(side)]) - known < self.num_negatives:
                self.draw(row, side)

    def _candidates(self, row: int, side: str) -> Iterator[tuple[int, bool]]:
        """Place and whether it is one of the pair's own, of all that may be drawn, in order."""
        content = self.index.content[other_side(side)]
        anchor, partners = int(self.index.content[side][row]), self._partners[side]
        seen: set[int] = set()
        stream = seeded_random(self.seed, "negatives", side, self.index.ids[row])
        of_task = self._of_task[other_side(side)][self.index.tasks[row]]
        everywhere = self._all[other_side(side)]
        own = self.index.negatives[row] if side == "query" else ()
        drawn = (int(pool[place]) for pool in (of_task, everywhere) for place in random_order(len(pool), stream))
        for place, number, is_own in chain(
            ((place, number, True) for place, number in enumerate(own)),
            ((place, int(content[place]), False) for place in drawn),
        ):
            if number not in seen and not partners.hold(anchor, number):
                seen.add(number)
                yield place, is_own


def _first_rows(content: npt.NDArray[np.int64], rows: Iterable[int]) -> npt.NDArray[np.int64]:
    """Of `rows`, the first of each content.

    >>> _first_rows(np.array([7, 8, 7, 9]), [1, 2, 3, 0]).tolist()
    [1, 2, 3]
    """
    rows = np.fromiter(rows, dtype=np.int64)
    _, first = np.unique(content[rows], return_index=True)
    return rows[np.sort(first)]
