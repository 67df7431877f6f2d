"""Keep threads from changing each other's tokenizer: a fast one holds the padding of a call until the next one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()


@contextmanager
def tokenizing() -> Iterator[None]:
    """Be the only thread in such a block: whatever may call a tokenizer, or a processor that does, is in one."""
    with _LOCK:
        yield


def is_tokenizing() -> bool:
    """Tell whether this thread is in a block of [`tokenizing`]."""
    return _LOCK._is_owned()  # type: ignore[attr-defined]


def _unlock_child() -> None:
    """Give a forked process a lock of its own: the thread that may hold the old one is not there."""
    global _LOCK
    _LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_child)
