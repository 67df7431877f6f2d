"""Note when and on which machine the study ran: it may take several runs."""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from experiments.pipeline.provenance import commit
from mmemb_r1.runs import write_json

SESSIONS_FILE = "sessions.json"
PACKAGES = ("mmemb-r1", "torch", "transformers", "trl", "sentence-transformers", "datasets")


class Session:
    """
    One run of the command. Its time is written down anew whenever something begins or ends, so that a kill loses
    little; a run that finds nothing to do is not written down.
    """

    def __init__(self, folder: Path, jobs: int) -> None:
        self._path, self._start = folder / SESSIONS_FILE, time.perf_counter()
        self._before = read_sessions(folder)
        self._facts: dict[str, Any] = {
            "began": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "commit": commit(),
            "jobs": jobs,
            "cores": os.cpu_count(),
            "machine": machine(),
            "python": platform.python_version(),
            "versions": versions(),
        }

    def note(self) -> None:
        """Write down how long the run has taken so far."""
        facts = {**self._facts, "seconds": round(time.perf_counter() - self._start, 1)}
        write_json(self._path, [*self._before, facts])


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """All runs so far."""
    path = folder / SESSIONS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def machine() -> str:
    """Name the processor, as far as the system knows it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or 'unknown processor'}, {platform.machine()}"


def versions() -> dict[str, str]:
    """Of the packages that results depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
