"""Files that run code when they are loaded. They are neither pushed nor kept by a pull."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from pathlib import Path, PurePosixPath

SUFFIXES = frozenset({".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
START = 2**16  # bytes of a file that are looked at
# what zipfile raises for archives that are broken, encrypted, or packed in a way that it doesn't know
UNREADABLE = (zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, lzma.LZMAError, zlib.error)


def has_pickle_name(name: str) -> bool:
    """
    >>> [has_pickle_name(name) for name in ("model.safetensors", "optimizer.pt", "1_Dense/pytorch_model.BIN")]
    [False, True, True]
    """
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def pickle_problem(path: Path) -> str | None:
    """
    What is wrong with a file that is a pickle by how it starts, or may hide one; `None` if nothing is.

    A pickle is what starts as those of protocol 2 or newer do (older ones have no such sign), and a numpy array of
    objects. A zip archive, as torch saves, holds one if a member is one by its name or its start; one that can't be
    read may hold one. Other archives are not opened.
    """
    with path.open("rb") as file:
        start = file.read(START)
    # a safetensors file begins with the length of its header, which may look like anything
    found = path.suffix != ".safetensors" and _is_pickle(start)
    try:
        found = found or (zipfile.is_zipfile(path) and _has_pickle(path))
    except UNREADABLE as error:
        return f"is an archive that can't be searched for pickles ({error}); move it elsewhere"
    return "is a pickle, which runs code when it is loaded; save safetensors, or move it elsewhere" if found else None


def _has_pickle(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as inner:
                if has_pickle_name(member.filename) or _is_pickle(inner.read(START)):
                    return True
    return False


def _is_pickle(start: bytes) -> bool:
    has_header = start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5")
    # the header of a numpy array is one line of text
    is_array_of_objects = start.startswith(b"\x93NUMPY") and b"|O" in start.split(b"\n", 1)[0]
    return has_header or is_array_of_objects
