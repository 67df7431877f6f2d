"""What selection knows of all pairs at once: who they are and which inputs are the same, not the inputs themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset

from mmemb_r1._inputs import PARTS
from mmemb_r1.training.prior.worker import SIDES
from mmemb_r1.training.tables import PAIR_COLUMNS, StoredInputs, check_pairs, content_key, stored_column


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
        key = content_key(value)
        digest.update(key)
        return numbers.setdefault(key, len(numbers))

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
