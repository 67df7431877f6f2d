"""Keep rows that wait for their turn: by priority, and so that a large request does not hold up small ones."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import accumulate
from typing import Any

from mmemb_r1.serving.executor import Row

WINDOW = 8  # times a batch: how far rows of like length are looked for

Key = tuple[int, float, int]  # priority, turn, number: unique


class RowQueue:
    """Hold rows in the order of their keys, and choose what is read together."""

    def __init__(self) -> None:
        self.tokens = 0  # of all rows that were prepared
        self._rows: list[tuple[Key, Row]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, key: Key, row: Row) -> None:
        """Add a row; the lowest key comes first."""
        insort(self._rows, (key, row), key=_key)
        self.tokens += _tokens(row)

    def drop(self, is_dropped: Callable[[Row], bool]) -> list[Row]:
        """Take out the rows of which this is so."""
        dropped = [row for _, row in self._rows if is_dropped(row)]
        self.take(dropped)
        return dropped

    def take(self, rows: Iterable[Row]) -> None:
        """Remove rows."""
        if taken := set(rows):
            self._rows = [(key, row) for key, row in self._rows if row not in taken]
            self.tokens = sum(_tokens(row) for _, row in self._rows)

    def first(self) -> tuple[Key, Row] | None:
        """Show the first row."""
        return self._rows[0] if self._rows else None

    def alike(self, batch_size: int, max_tokens: int, fixed: int = 0) -> list[Row]:
        """
        Choose the first row, and others that cost little beside it: of its priority, of what it can be joined to, and
        of like length. They stay until they are taken.

        Args:
            batch_size: rows at most.
            max_tokens: tokens at most, padding included; the first row is chosen whatever it has.
            fixed: what a batch costs beside its tokens, in tokens.
        """
        head = self.first()
        if head is None:
            return []
        (priority, _, _), first = head
        window = [first]
        window += [
            row
            for key, row in self._rows[1 : WINDOW * batch_size]
            if key[0] == priority and _kind(row) == _kind(first)
        ]
        window.sort(key=_tokens)  # of rows of one length, those that came first
        lengths = [_tokens(row) for row in window]
        return window[most_for_its_cost(lengths, window.index(first), batch_size, max_tokens, fixed)]


def most_for_its_cost(lengths: Sequence[int], at: int, size: int, max_tokens: int, fixed: int = 0) -> slice:
    """
    Choose the batch that reads most for what it costs: neighbours in length, the row at `at` among them.

    A batch costs as many tokens as all of its rows would have if they were as long as the longest, and `fixed` more.
    Of two that are as good, the one of more rows is chosen, then the one of shorter rows.

    Args:
        lengths: tokens of each row, from the shortest to the longest.
        at: which row has to be in it.
        size: rows at most.
        max_tokens: tokens at most, padding included; a row alone may have more.
        fixed: what a batch costs whatever is in it, in tokens.

    Examples:
        >>> most_for_its_cost([5, 6, 6, 7, 90], 2, size=8, max_tokens=1000, fixed=10)
        slice(0, 4, None)
        >>> most_for_its_cost([5, 6, 6, 7, 90], 4, size=8, max_tokens=1000, fixed=10)
        slice(4, 5, None)
        >>> most_for_its_cost([5, 6, 6, 7, 90], 4, size=8, max_tokens=1000, fixed=10_000)
        slice(0, 5, None)
    """
    sums = [0, *accumulate(lengths)]
    best, chosen = (-1.0, 0), slice(at, at + 1)
    for end in range(at + 1, min(at + size, len(lengths)) + 1):
        longest = lengths[end - 1]
        for start in range(max(end - size, 0), at + 1):
            rows = end - start
            if rows > 1 and rows * longest > max_tokens:
                continue
            worth = (sums[end] - sums[start]) / max(fixed + rows * longest, 1), rows
            if worth > best:
                best, chosen = worth, slice(start, end)
    return chosen


def _key(entry: tuple[Key, Any]) -> Key:
    return entry[0]


def _tokens(row: Row) -> int:
    return 0 if row.prepared is None else row.prepared.tokens


def _kind(row: Row) -> Hashable:
    """Say with which rows one can be read, or, before that, prepared."""
    return row.has_media if row.prepared is None else row.prepared.kind
