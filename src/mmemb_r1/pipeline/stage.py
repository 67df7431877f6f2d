"""A stage: it writes its result whole, is skipped when that is there, and notes how long it took."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmemb_r1._files import claim, claimed, made_whole

STAGE_FILE = "stage.json"
# Fields of every trainer's config for a model that is small enough for a CPU.
ON_CPU = {
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "report_to": [],
    "save_total_limit": 1,
}


def run_stage(folder: Path, facts: Mapping[str, Any], make: Callable[[Path], None]) -> bool:
    """
    Make the folder of a stage, unless it is there.

    Args:
        folder: of the result. Beside it, `NAME.json` notes what it is made of before anything is made, so that a run
            that was killed goes on with the same settings only. `stage.json` in it says what it took.
        facts: what makes the result another one.
        make: fills the folder that it is given.

    Returns:
        Whether it was made; `False` if it was there already.

    Raises:
        ValueError: if the stage was begun with other facts.
    """
    note = folder.with_name(f"{folder.name}.json")
    resumed = claimed(note, facts, what=str(folder))
    claim(note, facts, what=str(folder))

    def timed(made: Path) -> None:
        start = time.perf_counter()
        made.mkdir(parents=True)
        make(made)
        took = {"seconds": round(time.perf_counter() - start, 1), "resumed": resumed, "threads": num_threads()}
        (made / STAGE_FILE).write_text(json.dumps(took, indent=2) + "\n", encoding="utf-8")

    return made_whole(folder, timed)


def num_threads() -> int:
    """Threads that torch works with, or would: nothing is imported to find out."""
    import sys

    if (torch := sys.modules.get("torch")) is not None:
        return int(torch.get_num_threads())
    return int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))


def cost_of(folder: Path) -> dict[str, Any] | None:
    """What a stage took: `seconds`, `resumed` (seconds since it went on, then) and `threads`; `None` if not noted."""
    path = folder / STAGE_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
