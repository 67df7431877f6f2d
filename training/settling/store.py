"""Keep on disk what was measured, so that a run that is started again, or another one, measures nothing twice."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from mmemb_r1.training.settling.reading import MeasuredInput

_WAIT = 300.0  # seconds for another process that writes
_ASKED_AT_ONCE = 500  # SQLite takes 999 values in one query in its oldest versions


class MeasuredStore:
    """
    Keep measurements in an SQLite file: key -> [`MeasuredInput`]. Any number of processes may read and write it.

    Args:
        path: the file, made where it is missing. One per way of reading: see [`Reading.fingerprint`].

    Raises:
        ValueError: naming the file, if it is damaged or can't be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"lengths of inputs are kept in {path.parent}, which can't be made ({error}). Set HF_HOME to a folder "
                "where you may write."
            ) from error
        with self._open() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS measured "
                "(key BLOB PRIMARY KEY, tokens INTEGER, longest INTEGER, reason TEXT) WITHOUT ROWID"
            )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Connect for one transaction: a connection must not be taken along into a forked process."""
        try:
            with closing(sqlite3.connect(self.path, timeout=_WAIT)) as connection, connection:
                yield connection
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self.path}, where lengths of inputs are kept, can't be used ({error}). Remove it; what it held is "
                "measured again. If you may not write there, set HF_HOME to a folder where you may."
            ) from error

    def get(self, keys: Sequence[bytes]) -> dict[bytes, MeasuredInput]:
        """Find those of some keys that were measured before."""
        found: dict[bytes, MeasuredInput] = {}
        with self._open() as connection:
            for start in range(0, len(keys), _ASKED_AT_ONCE):
                asked = keys[start : start + _ASKED_AT_ONCE]
                marks = ",".join("?" * len(asked))
                rows = connection.execute(
                    f"SELECT key, tokens, longest, reason FROM measured WHERE key IN ({marks})", asked
                )
                found |= {key: MeasuredInput(*values) for key, *values in rows}
        return found

    def put(self, measured: Mapping[bytes, MeasuredInput]) -> None:
        """Keep measurements, whole or not at all."""
        if measured:
            with self._open() as connection:
                rows = ((key, *values) for key, values in measured.items())
                connection.executemany("INSERT OR REPLACE INTO measured VALUES (?, ?, ?, ?)", rows)
