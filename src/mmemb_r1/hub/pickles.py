"""Files that run code when they are loaded. They are neither pushed nor pulled."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

SUFFIXES = frozenset({".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})


def has_pickle_name(name: str) -> bool:
    """
    >>> [has_pickle_name(name) for name in ("model.safetensors", "optimizer.pt", "1_Dense/pytorch_model.BIN")]
    [False, True, True]
    """
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def holds_pickle(path: Path) -> bool:
    """Whether a file is a pickle by its content, whatever it is called: one of protocol 2 or newer, an archive with
    one in it (as torch saves), or a numpy array of objects."""
    with path.open("rb") as file:
        start = file.read(2**16)
    # a safetensors file begins with the length of its header, which may look like anything
    if path.suffix != ".safetensors" and start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return True
    if _is_array_of_objects(start):
        return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as inner:
                if has_pickle_name(member.filename) or _is_array_of_objects(inner.read(2**16)):
                    return True
    return False


def _is_array_of_objects(start: bytes) -> bool:
    """Of the beginning of a file. The header of a numpy array is one line of text."""
    return start.startswith(b"\x93NUMPY") and b"|O" in start.split(b"\n", 1)[0]
