"""Files and folders that are either written whole or not at all, and folders that belong to one run."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replaced_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends without an error.

    A block that fails leaves whatever was at `path` as it was. Missing folders are made.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        temporary = Path(folder) / target.name
        yield temporary
        os.replace(temporary, target)


def claim(path: Path, facts: Mapping[str, Any]) -> None:
    """Note in a file what a run is made of, so that only the same run goes on in its folder.

    Raises:
        ValueError: if another run was begun there.
    """
    text = json.dumps(facts, indent=2, sort_keys=True, default=str) + "\n"
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"{path.parent} was begun with other settings or data (see {path}). Choose another folder, "
                "or remove that one."
            )
        return
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
