"""The results of an evaluation as a JSON file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mmemb_r1._files import replaced_file

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
    """Read what `save_results` wrote.

    Raises:
        ValueError: if the file holds something else.
    """
    results = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(results, dict) or not {"config", "tasks", "summary"} <= set(results):
        raise ValueError(
            f"{path} does not hold the results of an evaluation: the keys config, tasks and summary are expected"
        )
    return results
