"""Which code and which files something was made with."""

from __future__ import annotations

import subprocess
from functools import cache
from hashlib import blake2b
from pathlib import Path

_CHUNK = 2**20


@cache
def commit() -> str | None:
    """
    The commit of the code that runs, with `-dirty` where it was changed since; `None` where it is not tracked by git,
    say in an environment that lies in somebody's checkout of something else.
    """
    return commit_of(Path(__file__).resolve())


def commit_of(file: Path) -> str | None:
    """The commit of the checkout that tracks a file, with `-dirty` where anything was changed; `None` if none does."""
    if _git(file, "ls-files", "--error-unmatch", file.name) is None:
        return None
    return _git(file, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") or None


def _git(file: Path, *command: str) -> str | None:
    """What git says in the folder of a file; `None` if it fails or is not there."""
    try:
        found = subprocess.run(
            ["git", "-C", str(file.parent), *command], capture_output=True, text=True, encoding="utf-8", timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def folder_digest(folder: Path) -> str:
    """
    A digest of all files in a folder, by name and content, read bit by bit; files and folders whose names begin with
    a full stop are left out.

    Raises:
        ValueError: if there is none.
    """
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    named = {name.as_posix(): path for name, path in files.items() if not any(part[0] == "." for part in name.parts)}
    if not named:
        raise ValueError(f"{folder} has no files")
    digest = blake2b(digest_size=16)
    for name in sorted(named):
        digest.update(f"{len(name)} {name} {named[name].stat().st_size} ".encode())
        with named[name].open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
