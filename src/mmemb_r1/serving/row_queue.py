"""Keep rows that wait for their turn: by priority, and so that a large request does not hold up small ones."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
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

    def alike(self, batch_size: int, max_tokens: int) -> list[Row]:
        """
        Choose the first row, and others that cost little beside it: of its priority, with media or without as it, and
        of like length. They stay until they are taken.

        Args:
            batch_size: rows at most.
            max_tokens: tokens at most, padding included; the first row is chosen whatever it has.
        """
        head = self.first()
        if head is None:
            return []
        (priority, _, _), first = head
        window = [
            row
            for key, row in self._rows[1 : WINDOW * batch_size]
            if key[0] == priority and row.has_media == first.has_media
        ]
        window.sort(key=lambda row: abs(_tokens(row) - _tokens(first)))
        chosen, longest = [first], _tokens(first)
        for row in window:
            longest = max(longest, _tokens(row))
            if len(chosen) == batch_size or (len(chosen) + 1) * longest > max_tokens:
                break
            chosen.append(row)
        return chosen


def _key(entry: tuple[Key, Any]) -> Key:
    return entry[0]


def _tokens(row: Row) -> int:
    return 0 if row.prepared is None else row.prepared.tokens
