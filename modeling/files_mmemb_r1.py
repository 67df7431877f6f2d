"""Write files with the permissions of any new file: those that the umask leaves, whatever a library thinks of it."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path


def as_new(paths: Iterable[Path]) -> None:
    """
    Give files, and folders, the permissions of new ones beside the first of them.

    safetensors writes files that nobody but the user can read, and `shutil.copy` makes copies of files that may only
    be read just like them, so that the next copy fails. To ask for the umask itself would be to change it, for all
    threads. A file of another user stays as it is.
    """
    modes: dict[bool, int] = {}
    for path in paths:
        if not modes:
            modes = _new_modes(path.parent)
        wanted = modes[path.is_dir()]
        status = path.stat()
        if stat.S_IMODE(status.st_mode) != wanted and (os.name == "nt" or status.st_uid == os.geteuid()):
            path.chmod(wanted)


def _new_modes(folder: Path) -> dict[bool, int]:
    """Find the permissions of what is new in a folder: is it a folder itself -> its mode."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as scratch:
        file, inner = Path(scratch, "file"), Path(scratch, "folder")
        file.touch()
        inner.mkdir()
        return {path.is_dir(): stat.S_IMODE(path.stat().st_mode) for path in (file, inner)}


def copy_content(source: Path, target: Path) -> None:
    """
    Copy a file, or a folder with all that is in it, but not who may read and change it; missing folders are made.

    A file that is there is replaced, also if it may only be read. `target` is the copy itself, not the folder it
    comes into.
    """
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            copy_content(path, target / path.name)
    elif not (target.exists() and target.samefile(source)):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copyfile(source, target)


def remove_read_only(paths: Iterable[Path]) -> None:
    """Remove files that may only be read, where they are about to be written anew: libraries open what is there."""
    for path in paths:
        if not os.access(path, os.W_OK):
            path.unlink()
