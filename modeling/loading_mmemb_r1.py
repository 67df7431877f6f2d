"""Say which checkpoint, and which of its files, is damaged, whatever that makes libraries raise."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

# Errors that say what is wrong. So does a plain ValueError, while special ones (no UTF-8, no JSON) name no file.
SPEAKING = (OSError, ImportError, RuntimeError, MemoryError, HFValidationError)
NEWLY = "Save or download it again."


class DamagedCheckpointError(ValueError):
    """Name a checkpoint that can't be loaded because of what its files hold."""


@contextmanager
def loading(checkpoint: Any) -> Iterator[None]:
    """
    Load a checkpoint in this block: errors that damaged files make of any type become one that names what is damaged.

    Errors that say what is wrong, and those of the machine, stay as they are, unless a file of the folder can't be
    read at all.

    Args:
        checkpoint: a folder, or a Hub id, of which only the id is told.

    Raises:
        DamagedCheckpointError: a `ValueError`.
    """
    try:
        yield
    except DamagedCheckpointError:
        raise
    except Exception as error:
        reason = damaged_file(checkpoint)
        if reason is None and (type(error) is ValueError or isinstance(error, SPEAKING)):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise DamagedCheckpointError(
            f"{checkpoint} can't be loaded: {reason or f'what its files hold does not fit ({said:.300})'}. {NEWLY}"
        ) from error


def damaged_file(checkpoint: Any) -> str | None:
    """Find a file at the top of a checkpoint's folder that is no JSON or no safetensors, and say what is wrong."""
    if not isinstance(checkpoint, str | os.PathLike) or not Path(checkpoint).is_dir():
        return None
    for path in sorted(Path(checkpoint).iterdir()):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="numpy"):
                    pass
        except (SafetensorError, ValueError, RecursionError) as error:
            kind = "JSON" if path.suffix == ".json" else "whole safetensors file"
            return f"{path.name} is no {kind} ({' '.join(str(error).split()):.200})"
    return None
