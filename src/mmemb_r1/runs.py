"""Keep folders of runs that can be resumed: files written whole or not at all."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmemb_r1.modeling.files_mmemb_r1 import as_new

_ALMOST_FULL = 2**16  # bytes
_ABANDONED = 24 * 60 * 60  # seconds


@contextmanager
def replaced_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends without an error.

    A block that fails leaves whatever was at `path` as it was. Missing folders are made. The file gets the permissions
    of any new file, whoever wrote it: safetensors would let the user alone read it. The block may make a folder too,
    where none with anything in it is.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}."
    _remove_abandoned(target.parent, prefix)
    with (
        tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as folder,
        explained_writing(target),
    ):
        temporary = Path(folder) / target.name
        yield temporary
        as_new([temporary])
        os.replace(temporary, target)


@contextmanager
def explained_writing(path: Path) -> Iterator[None]:
    """
    Turn the errors of a disk that is full while something is written into one that says so, whoever writes.

    Raises:
        OSError: naming `path`; the error of the library that wrote is its cause.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError: torch
        if not _is_of_a_full_disk(error, path):
            raise
        raise OSError(
            errno.ENOSPC, f"{path} can't be written: the disk is full. Free some space, and do the same again"
        ) from error


def _is_of_a_full_disk(error: Exception, path: Path) -> bool:
    number = getattr(error, "errno", None)
    if number is not None:
        return number in (errno.ENOSPC, errno.EDQUOT)
    if "No space left" in str(error):
        return True
    # numpy says only that less was written than was to be, torch that a place in the file is not the expected one
    there = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(there).free < _ALMOST_FULL


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove temporary folders that killed processes left: those in which nothing was written for a day."""
    for left in folder.glob(f"{glob.escape(prefix)}*"):
        with suppress(FileNotFoundError):  # of another process that is done just now
            newest = max(path.stat().st_mtime for path in (left, *left.iterdir()))
            if time.time() - newest > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)


def read_json(path: Path) -> Any:
    """Read a JSON file that a run left.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also where it is no UTF-8
        raise ValueError(
            f"{path} is damaged ({error}). Put it back from a copy, or remove it if you know that what lies beside it "
            "is of this run."
        ) from error


def write_json(path: Path, content: Any, *, allow_nan: bool = True) -> None:
    """Write JSON for people and programs, whole or not at all.

    Raises:
        ValueError: if a number is NaN or infinite and `allow_nan` is switched off.
    """
    text = json.dumps(content, indent=2, allow_nan=allow_nan) + "\n"
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def record_run(
    path: Path,
    settings: Mapping[str, Any],
    *,
    what: str | None = None,
    hint: str = "Choose another folder, or remove it.",
) -> bool:
    """Record the settings of a run in a file, so that only the same run goes on in its folder.

    Args:
        path: the file.
        settings: what makes the run the same; what JSON does not know is written as text.
        what: whose run it is, for the message. Default: the folder's.
        hint: what to do about it, the end of the message.

    Returns:
        Whether the same run was recorded before.

    Raises:
        ValueError: if another run was begun there; it says what differs.
    """
    if check_run(path, settings, what=what, hint=hint):
        return True
    with replaced_file(path) as temporary:
        temporary.write_text(as_json(settings), encoding="utf-8")
    return False


def check_run(
    path: Path,
    settings: Mapping[str, Any],
    *,
    what: str | None = None,
    hint: str = "Choose another folder, or remove it.",
) -> bool:
    """Tell whether the same run was recorded before; an error if another one was, as in `record_run`."""
    if not path.exists():
        return False
    there, here = read_json(path), json.loads(as_json(settings))
    if differences := list(_differences(there, here)):
        shown = "; ".join(differences[:3]) + ("; ..." if len(differences) > 3 else "")
        raise ValueError(f"{what or path.parent} was begun with other settings or data: {shown} (see {path}). {hint}")
    return True


def as_json(settings: Mapping[str, Any]) -> str:
    """Write settings in one form, whatever their order; what JSON does not know is written as text."""
    return json.dumps(settings, indent=2, sort_keys=True, default=str) + "\n"


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """
    List what differs between two runs.

    >>> list(_differences({"seed": 0, "fields": {"a": 1}}, {"seed": 1, "fields": {"a": 1, "b": 2}}))
    ['fields.b was not set, is now 2', 'seed was 0, is now 1']
    """
    for key in sorted({*there, *here}):
        if key in there and key in here and isinstance(there[key], dict) and isinstance(here[key], dict):
            yield from _differences(there[key], here[key], f"{within}{key}.")
        elif key not in there or key not in here or there[key] != here[key]:
            before, now = (f"{side[key]!r:.60}" if key in side else "not set" for side in (there, here))
            yield f"{within}{key} was {before}, is now {now}"


def made_whole(folder: Path, make: Callable[[Path], None]) -> bool:
    """Let `make` fill a folder beside its place and move it there when it is complete.

    Returns:
        Whether it was made; `False` if it was there already.
    """
    if folder.exists():
        return False
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    make(partial)
    partial.rename(folder)
    return True
