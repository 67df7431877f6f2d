"""Finding the checkpoint that a run goes on from."""

from __future__ import annotations

import json
import re
from pathlib import Path

STATE_FILE = "trainer_state.json"  # what `Trainer` writes last
_NAME = re.compile(r"checkpoint-(\d+)")


def last_checkpoint(folder: Path) -> str | None:
    """
    The last checkpoint that is complete.

    A process that is killed while it saves leaves a part of one. `Trainer` would go on from that part: without its
    last file from the first step, with whatever weights are there.

    Args:
        folder: the trainer's `output_dir`; it may be missing.

    Returns:
        Its path, for `resume_from_checkpoint`; `None` if there is none.
    """
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return next((str(path) for _, path in sorted(found, reverse=True) if _is_complete(path)), None)


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True
