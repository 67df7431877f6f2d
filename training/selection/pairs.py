"""Index the pairs of a table by content, and draw wrong pairs to try a rationale on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset

from mmemb_r1.content import DIGEST_SIZE, content_key, stored_digest
from mmemb_r1.modeling.inputs_mmemb_r1 import PARTS
from mmemb_r1.seeding import ring_order, ring_position, seeded_random
from mmemb_r1.training.rationales.worker import SIDES
from mmemb_r1.training.tables import (
    PAIR_COLUMNS,
    StoredInputs,
    StoredValues,
    as_numbers,
    check_pairs,
    number_distinct,
    number_rows,
    tasks_of,
)

_KEYS_AT_ONCE = 4096
_SHORT = 16  # bytes of a digest that are kept


@dataclass(frozen=True)
class PairIndex:
    """
    Indexes a pairs table by content.

    Args:
        ids: pair id of each row.
        tasks: task of each row; `""` where the table names none.
        content: side -> `(N,)` numbers, equal (also on the other side, and in `negatives`) for equal inputs.
        negatives: such numbers for each pair's own negatives.
        digests: `(C,)` 16 bytes for each number, which are the same in every table.
        fingerprint: equal for tables with the same pairs in the same order.
    """

    ids: Sequence[str]
    tasks: Sequence[str]
    content: dict[str, npt.NDArray[np.int64]]
    negatives: Sequence[tuple[int, ...]]
    digests: npt.NDArray[np.void]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.ids)


class _Lists(Sequence[tuple[int, ...]]):
    """Hold N lists of numbers as one array: the numbers of the first list, of the second, and so on."""

    def __init__(self, sizes: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> None:
        self._ends, self._values = sizes.cumsum(), values

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[place] for place in range(*row.indices(len(self)))]
        end = int(self._ends[row])
        start = int(self._ends[row - 1]) if row % len(self) else 0
        return tuple(self._values[start:end].tolist())


def other_side(side: str) -> str:
    """
    >>> other_side("query"), other_side("target")
    ('target', 'query')
    """
    return SIDES[1 - SIDES.index(side)]


class KnownMatches:
    """Looks up which contents of the other side match a content of `side`, anywhere in the table."""

    def __init__(self, index: PairIndex, side: str) -> None:
        matches = np.stack([index.content[side], index.content[other_side(side)]], axis=1)
        self._anchors, self._others = np.unique(matches, axis=0).T  # sorted by anchor, then by the other side

    def of(self, anchor: int) -> npt.NDArray[np.int64]:
        """Return the contents that match an anchor, sorted."""
        first, last = np.searchsorted(self._anchors, [anchor, anchor + 1])
        return self._others[first:last]

    def include(self, anchor: int, other: int) -> bool:
        """Whether two contents are known to match."""
        matches = self.of(anchor)
        position = int(np.searchsorted(matches, other))
        return position < len(matches) and int(matches[position]) == other


def index_pairs(pairs: Dataset) -> PairIndex:
    """
    Index a pairs table, row by row and without decoding a picture.

    Args:
        pairs: columns `pair_id`, `query`, `target` and, optionally, `task` and `negatives`.

    Raises:
        ValueError: if `check_pairs` refuses the table, or its negatives are not lists of inputs.
    """
    check_pairs(pairs, PAIR_COLUMNS)
    digest = blake2b(digest_size=16)

    def key_of(value: Any) -> bytes:
        stored, key = stored_digest(value), content_key(value)
        digest.update(stored)
        return key if len(key) == DIGEST_SIZE else stored  # stored: it can't be read

    keys = [_numbers(key_of(value) for value in StoredInputs(pairs, side)) for side in SIDES]
    sizes: list[int] = []

    def negative_keys() -> Iterator[bytes]:
        for own in _own_negatives(pairs):
            sizes.append(len(own))
            yield from map(key_of, own)

    keys.append(_numbers(negative_keys()))
    every = np.concatenate(keys)  # (M, 2)
    numbers = number_rows(every)
    digests = every[np.unique(numbers, return_index=True)[1]].astype("<u8").view(f"V{_SHORT}")[:, 0]  # (C,)
    query, target, negatives = np.split(numbers, [len(pairs), 2 * len(pairs)])
    ids, tasks = StoredValues(pairs, "pair_id"), tasks_of(pairs)
    for pair_id, task, size in zip(ids, tasks, sizes, strict=True):
        digest.update(repr((pair_id, task, size)).encode())
    content = dict(zip(SIDES, (query, target), strict=True))
    own = _Lists(np.array(sizes, np.int64), negatives)
    return PairIndex(ids, tasks, content, own, digests, digest.hexdigest())


def _numbers(keys: Iterator[bytes]) -> npt.NDArray[np.uint64]:
    """Gather content keys as `(N, 2)` numbers, some at a time: the keys themselves take six times as much."""
    parts = [np.zeros((0, 2), np.uint64)]
    while some := list(islice(keys, _KEYS_AT_ONCE)):
        parts.append(as_numbers(some))
    return np.concatenate(parts)


def _own_negatives(pairs: Dataset) -> Iterator[list[dict[str, Any]]]:
    """Yield each pair's own negatives."""
    if "negatives" not in pairs.column_names:
        yield from ([] for _ in range(len(pairs)))
        return
    column = pairs.select_columns(["negatives"]).with_format("arrow")[:1]["negatives"]
    kind = getattr(column.type, "value_type", column.type)
    if not pa.types.is_null(kind) and not (kind != column.type and pa.types.is_struct(kind)):
        raise ValueError(
            f"the column 'negatives' of the pairs table holds {column.type}; allowed: a list of inputs, each an "
            f"object with any of the keys {', '.join(PARTS)}"
        )
    yield from (own or [] for own in StoredValues(pairs, "negatives"))


class Negatives(NamedTuple):
    """
    Inputs of the other side that don't match.

    Attributes:
        own: which of the pair's own `negatives`.
        rows: rows of the pairs table, meaning their inputs of the other side.
    """

    own: tuple[int, ...]
    rows: tuple[int, ...]


class _Ring(NamedTuple):
    """Rows of the pairs table, one of each content, and their positions on a ring, which are sorted."""

    rows: npt.NDArray[np.int64]
    positions: npt.NDArray[np.uint64]


class NegativeSampler:
    """
    Draws the negatives of a pair's side, each of different content.

    First come the pair's own negatives (for its query), then the other sides of pairs of its task, then of other
    tasks. What is known to match an identical input, anywhere in the table, is never drawn. A draw is a pure function
    of the seed, the pair's id, the side and the table, whatever the order of its rows; and where pairs leave or come,
    only those draws change that they are in.
    """

    def __init__(self, index: PairIndex, num_negatives: int = 4, seed: int = 0) -> None:
        self.index, self.num_negatives, self.seed = index, num_negatives, seed
        self._matches = {side: KnownMatches(index, side) for side in SIDES}
        positions = np.array([ring_position(seed, key.tobytes()) for key in index.digests], dtype=np.uint64)  # (C,)
        self._all = {side: _ring(index.content[side], np.arange(len(index)), positions) for side in SIDES}
        numbers, first = number_distinct(index.tasks)
        rows = np.argsort(numbers, kind="stable")  # those of one task together, in their order
        rows_of_task = np.split(rows, np.bincount(numbers, minlength=len(first)).cumsum()[:-1])
        self._of_task = {
            side: {
                index.tasks[place]: _ring(index.content[side], own, positions)
                for place, own in zip(first, rows_of_task, strict=True)
            }
            for side in SIDES
        }

    def draw(self, row: int, side: str) -> Negatives:
        """Draw for the pair of a row: targets for the side `"query"`, queries for `"target"`."""
        drawn = list(islice(self._candidates(row, side), self.num_negatives))
        if len(drawn) < self.num_negatives:
            raise ValueError(
                f"the pair {self.index.ids[row]!r} has {len(drawn)} possible negatives for its {side}, but "
                f"num_negatives={self.num_negatives}: the table has too few different pairs. Lower the number or add "
                "pairs"
            )
        own, rows = (tuple(number for number, is_own in drawn if is_own == wanted) for wanted in (True, False))
        return Negatives(own, rows)

    def check(self, sides: Iterable[tuple[int, str]]) -> None:
        """Refuse a table with too few negatives for any of these rows and sides, without drawing for them all."""
        for row, side in sides:
            known = len(self._matches[side].of(self.index.content[side][row]))
            if len(self._all[other_side(side)].rows) - known < self.num_negatives:
                self.draw(row, side)

    def _candidates(self, row: int, side: str) -> Iterator[tuple[int, bool]]:
        """Yield all that may be drawn, in order: number of a negative or a row, and whether it is the pair's own."""
        content = self.index.content[other_side(side)]
        anchor, matches = int(self.index.content[side][row]), self._matches[side]
        seen: set[int] = set()
        rings = {
            "task": self._of_task[other_side(side)][self.index.tasks[row]],
            "all": self._all[other_side(side)],
        }
        own = self.index.negatives[row] if side == "query" else ()
        rows = (
            int(ring.rows[place])
            for name, ring in rings.items()
            for place in ring_order(
                ring.positions, seeded_random(self.seed, "negatives", name, side, self.index.ids[row])
            )
        )
        for number, value, is_own in chain(
            ((number, value, True) for number, value in enumerate(own)),
            ((other, int(content[other]), False) for other in rows),
        ):
            if value not in seen and not matches.include(anchor, value):
                seen.add(value)
                yield number, is_own


def _first_rows(content: npt.NDArray[np.int64], rows: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Keep the first of `rows` of each content.

    >>> _first_rows(np.array([7, 8, 7, 9]), [1, 2, 3, 0]).tolist()
    [1, 2, 3]
    """
    rows = np.asarray(rows, dtype=np.int64)
    _, first = np.unique(content[rows], return_index=True)
    return rows[np.sort(first)]


def _ring(content: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], positions: npt.NDArray[np.uint64]) -> _Ring:
    """Put the first of `rows` of each content on a ring, given the positions `(C,)` of contents."""
    first = _first_rows(content, rows)
    places = positions[content[first]]
    order = places.argsort(kind="stable")
    return _Ring(first[order], places[order])
