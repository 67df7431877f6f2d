"""Keep computed embeddings on disk, for several processes at once."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from types import TracebackType

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

FILE = "embeddings.sqlite3"
_APPLICATION = 0x6D6D7231  # says in the file's header whose it is: "mmr1"
_LAYOUT = 1
_PER_QUERY = 500  # keys; SQLite allows 999 at least
_PATIENCE = 120.0  # seconds that one process waits for the others
_SCHEMA = "CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, value BLOB NOT NULL, checksum BLOB NOT NULL)"


class EmbeddingCache:
    """
    Keep what was computed for each input in a folder: a key -> named tensors.

    Several processes and threads may read and write it at once, and any of them may be killed: what one `put` writes
    is there whole or not at all. An entry that is damaged counts as missing. Nothing is ever thrown out; remove the
    folder to be rid of it. It has to be on a local disk, for SQLite can't lock files of a network. It may
    be sent to other processes, which open it themselves.

    Args:
        folder (`str` or `os.PathLike`): made if it is missing.
        private (`bool`, *optional*, defaults to `True`): whether only the user may read a file that is made; otherwise
            whoever may read other files that the user makes (umask).

    Raises:
        ValueError: if there is something else in its place.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, EmbeddingCache(folder) as cache:
    ...     cache.put({b"Lima": {"embedding": torch.ones(2)}})
    ...     cache.get([b"Quito", b"Lima"])
    [None, {'embedding': tensor([1., 1.])}]
    """

    def __init__(self, folder: str | os.PathLike[str], private: bool = True) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self.private = private
        self.path = self.folder / FILE
        # SQLite's connections are neither for other threads nor for the children of a process
        self._connections: dict[tuple[int, int], sqlite3.Connection] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"{self.folder} is a file; name a folder for the cache of embeddings.") from error
        except OSError as error:
            raise ValueError(self._unusable(error)) from error
        with self._readable():
            self._connection()

    def get(self, keys: Sequence[bytes]) -> list[dict[str, Tensor] | None]:
        """
        Look up what was put for each key, on the CPU; `None` where there is nothing, or nothing that is whole.

        Raises:
            ValueError: if the file is damaged.
        """
        found: dict[bytes, dict[str, Tensor]] = {}
        wanted = list(dict.fromkeys(keys))
        with self._readable():
            for start in range(0, len(wanted), _PER_QUERY):
                chunk = wanted[start : start + _PER_QUERY]
                marks = ", ".join("?" * len(chunk))
                query = f"SELECT key, value, checksum FROM rows WHERE key IN ({marks})"
                for key, value, checksum in self._connection().execute(query, chunk):
                    if (tensors := _parsed(key, value, checksum)) is not None:
                        found[key] = tensors
        return [found.get(key) for key in keys]

    def put(self, rows: Mapping[bytes, Mapping[str, Tensor]]) -> None:
        """
        Keep rows, all of them or none, in the place of what was there for their keys.

        Raises:
            ValueError: if the file is damaged.
        """
        entries = []
        for key, tensors in rows.items():
            # copies: rows of one batch share its memory
            value = save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()})
            entries.append((key, value, _checksum(key, value)))
        if not entries:
            return
        with self._readable(), _transaction(self._connection()) as connection:
            connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", entries)

    def __len__(self) -> int:
        """Count the entries, damaged ones included."""
        with self._readable():
            return int(self._connection().execute("SELECT count(*) FROM rows").fetchone()[0])

    def close(self) -> None:
        """Close the file. Whatever comes later opens it again."""
        for owner in list(self._connections):
            if owner[0] == os.getpid():
                self._connections.pop(owner).close()

    def __enter__(self) -> EmbeddingCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[EmbeddingCache], tuple[str, bool]]:
        return type(self), (str(self.folder), self.private)

    def _connection(self) -> sqlite3.Connection:
        """Get this thread's own. That of a parent process is kept and left alone: closing it would be using it."""
        owner = (os.getpid(), threading.get_ident())
        if owner not in self._connections:
            self._connections[owner] = self._opened()
        return self._connections[owner]

    def _opened(self) -> sqlite3.Connection:
        try:  # SQLite would make it readable for others; its other files get the permissions of this one
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600 if self.private else 0o666))
        except FileExistsError:
            pass
        # autocommit: transactions are begun where they are needed; other threads only close it
        connection = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            _set_up(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Say what to do about a file that SQLite can't read."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:  # of a disk or another process, not of the file
            raise ValueError(self._unusable(error)) from error
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self.path} can't be read as a cache of embeddings ({error}). Choose another folder, or remove "
                f"{FILE} and the files beside it whose names begin so; what it held is then computed again."
            ) from error

    def _unusable(self, error: Exception) -> str:
        return (
            f"{self.path} can't be used as a cache of embeddings ({error}). It has to be on a local disk that has "
            "space, in a folder where you may write, and not held by another process. Choose another folder, or "
            "encode without a cache."
        )


def _set_up(connection: sqlite3.Connection) -> None:
    """Make an empty file a cache, and refuse one of somebody else."""
    _with_write_ahead_log(connection)
    connection.execute("PRAGMA synchronous = NORMAL")  # a loss of power may cost the last entries, not the file
    if _header(connection) == (_APPLICATION, _LAYOUT):
        return
    with _transaction(connection):
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        header = _header(connection)
        if header != (_APPLICATION, _LAYOUT) and (tables or header != (0, 0)):
            whose = f"layout {header[1]} of another version" if header[0] == _APPLICATION else "another program's"
            raise sqlite3.DatabaseError(f"it is {whose}")
        connection.execute(_SCHEMA)
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {_LAYOUT}")


def _header(connection: sqlite3.Connection) -> tuple[int, int]:
    """Read which program's file it is, and in which layout; two zeros in a new one."""
    application, layout = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("application_id", "user_version")
    )
    return application, layout


def _with_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Let readers and a writer work at once. SQLite does not wait for others before it changes to that."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")  # waits here for other writers, not halfway
    try:
        yield connection
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _checksum(key: bytes, value: bytes) -> bytes:
    """Checksum key and value together, so that a value stored under the wrong key is detected."""
    return blake2b(value, digest_size=16, key=key[:64]).digest()


def _parsed(key: bytes, value: object, checksum: object) -> dict[str, Tensor] | None:
    if not isinstance(value, bytes) or checksum != _checksum(key, value):
        return None
    try:
        return load(value)
    except SafetensorError:  # of a version that writes otherwise
        return None
