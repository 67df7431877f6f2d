"""Which code something was made with."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path


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
