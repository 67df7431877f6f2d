"""The results of an evaluation as a JSON file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mmemb_r1._files import replaced_file

FORMAT = 2
Results = dict[str, Any]


def save_results(results: Results, path: str | os.PathLike[str]) -> None:
    """Write `results` as JSON, whole or not at all.

    Raises:
        ValueError: if a number is NaN or infinite.
    """
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_results(path: str | os.PathLike[str]) -> Results:
    """Read what `save_results` wrote, also in an older format: what that one had not is left out.

    Raises:
        ValueError: if the file holds something else, or a format that is newer.
    """
    results = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(results, dict) or not {"config", "tasks", "summary"} <= set(results):
        raise ValueError(
            f"{path} does not hold the results of an evaluation: the keys config, tasks and summary are expected"
        )
    found = results.get("format", 1)
    if found not in (1, FORMAT):
        raise ValueError(f"{path} has the format {found!r}; known: 1 to {FORMAT}. Upgrade mmemb-r1 to read it.")
    return _of_format_1(results) if found == 1 else results


def _of_format_1(results: Results) -> Results:
    """Results of before there were other metrics than hit@1 and other groups than complexities."""
    for part in ("tasks", "summary"):
        entries = results[part].values() if isinstance(results[part], dict) else ()
        for entry in entries:
            if part == "tasks" and isinstance(entry, dict):
                groups = {"complexity": entry["complexity"]} if "complexity" in entry else {}
                entry.setdefault("metric", "hit@1")
                entry.setdefault("groups", groups)
            for numbers in _objects(entry):
                if "hit@1" in numbers:
                    numbers.setdefault("score", numbers["hit@1"])
    return {"format": FORMAT, **results}


def _objects(entry: Any) -> list[dict[str, Any]]:
    """The objects under a task's or a group's modes; what is damaged has none, and readers say so."""
    modes = entry.get("modes") if isinstance(entry, dict) else None
    return [numbers for numbers in modes.values() if isinstance(numbers, dict)] if isinstance(modes, dict) else []
