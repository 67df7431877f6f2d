"""A stage: it writes its result whole, is skipped when that is there, and notes what it was made of and took."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.pipeline.provenance import commit
from mmemb_r1.runs import made_whole, record_run, write_json

STAGE_FILE = "stage.json"
# Fields of every trainer's config for a model that is small enough for a CPU.
ON_CPU = {
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "report_to": [],
    "save_total_limit": 1,
}
MadeOf = Mapping[str, str]  # what something was made of: name -> the `id` that its stage noted


def run_stage(
    folder: Path,
    facts: Mapping[str, Any],
    make: Callable[[Path], None],
    *,
    made_of: MadeOf | None = None,
    checkpoints: Path | None = None,
) -> bool:
    """
    Make the folder of a stage, unless it is there.

    Args:
        folder: of the result. Beside it, `NAME.json` notes what it is made of before anything is made, so that a run
            that was killed goes on with the same settings only. `stage.json` in it says what it took, and has an `id`.
        facts: what makes the result another one.
        make: fills the folder that it is given.
        made_of: stages that the result is made of. Default: none that is known.
        checkpoints: folder in which a training that was killed finds what to go on from. It is noted there too what it
            is made of; it is removed when the result is there.

    Returns:
        Whether it was made; `False` if it was there already.

    Raises:
        ValueError: if the stage was begun with other facts, or of other results.
    """
    note = folder.with_name(f"{folder.name}.json")
    noted = _noted(facts, made_of)
    resumed = record_run(note, noted, what=str(folder), hint=f"Remove {folder} and {note} to have it made anew.")
    if checkpoints is not None and not folder.exists():
        record_run(checkpoints / STAGE_FILE, noted, what=str(checkpoints), hint=f"Remove {checkpoints}.")

    def timed(made: Path) -> None:
        start = time.perf_counter()
        made.mkdir(parents=True)
        make(made)
        write_json(made / STAGE_FILE, _record(start, resumed, made_of))
        # Before the folder takes its place: after a kill in between, nobody would look for them again. Were they
        # kept, a folder that is removed would come back as it was.
        if checkpoints is not None:
            shutil.rmtree(checkpoints, ignore_errors=True)

    return made_whole(folder, timed)


def run_noted(
    path: Path,
    facts: Mapping[str, Any],
    work: Callable[[], Mapping[str, Any] | None],
    *,
    made_of: MadeOf | None = None,
) -> bool:
    """
    Do some work that keeps its results itself, unless it is noted as done.

    Args:
        path: JSON that is written when it is done, with what `run_stage` writes to `stage.json`. `NAME.begun.json`
            beside it notes what it is made of before anything is done.
        facts: what makes the result another one.
        work: returns what else to note.
        made_of: stages that the result is made of.

    Returns:
        Whether it was done; `False` if it had been before.

    Raises:
        ValueError: if it was begun with other facts, or of other results.
    """
    mend = f"Remove {path.parent} to have it made anew."
    resumed = record_run(path.with_suffix(".begun.json"), _noted(facts, made_of), what=str(path), hint=mend)
    if path.exists():
        return False
    start = time.perf_counter()
    more = work() or {}
    write_json(path, {**_record(start, resumed, made_of), **more})
    return True


def _noted(facts: Mapping[str, Any], made_of: MadeOf | None) -> dict[str, Any]:
    return {**facts, "made of": dict(made_of)} if made_of else dict(facts)


def _record(start: float, resumed: bool, made_of: MadeOf | None) -> dict[str, Any]:
    return {
        "id": secrets.token_hex(8),
        "made of": dict(made_of or {}),
        "seconds": round(time.perf_counter() - start, 1),
        "resumed": resumed,
        "threads": num_threads(),
        "commit": commit(),
    }


def num_threads() -> int:
    """Threads that torch works with, or would: nothing is imported to find out."""
    import sys

    if (torch := sys.modules.get("torch")) is not None:
        return int(torch.get_num_threads())
    return int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))


def cost_of(done: Path) -> dict[str, Any] | None:
    """
    What a stage noted: `id`, `made of`, `seconds`, `resumed` (seconds since it went on, then), `threads` and `commit`;
    `None` if it is not done, or noted nothing.

    Args:
        done: its folder, or the file of `run_noted`.
    """
    path = done / STAGE_FILE if done.is_dir() else done
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def ids_of(stages: Mapping[str, Path]) -> dict[str, str]:
    """What something is made of, see `MadeOf`: the ids of stages, as far as they are done and noted one."""
    return {name: noted["id"] for name, done in stages.items() if "id" in (noted := cost_of(done) or {})}
