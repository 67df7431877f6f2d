"""The folder of an evaluation: what it is of, and what of each task and mode is measured already."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mmemb_r1._files import claim
from mmemb_r1.evaluation.run.columns import Columns
from mmemb_r1.evaluation.run.results import save_results
from mmemb_r1.evaluation.run.rows import numbers_path, read_rows, rows_path, write_rows
from mmemb_r1.evaluation.tasks import RetrievalTask

RUN_FILE, TASK_FILE, RESULTS_FILE = "run.json", "task.json", "results.json"


@dataclass(frozen=True)
class Measured:
    """
    A task in one mode.

    Attributes:
        numbers: means over the queries, what JSON holds: `score`, its `interval`, the metrics, `invocation_ratio`,
            `mean_reasoning_tokens`, `seconds_per_query` (`None` if nothing was timed), and `no_image` where measured.
        rows: columns `(Q,)`: `query_id`, `cluster`, `score`, `rank`, `margin` (NaN: there is no other candidate),
            `alignment`, `gate_prob` (NaN: there is no gate), `reasoned`, `num_reasoning_tokens`,
            `num_reasoning_rounds`, and `rationale` and `query_text` (`None`: not asked for).
    """

    numbers: dict[str, Any]
    rows: Columns


class RunFolder:
    """
    Keeps what is measured, file by file, each written whole or not at all.

    Args:
        folder: made if it is missing.
        facts: what makes this another run: the checkpoint, the settings.

    Raises:
        ValueError: if another run was begun there; it says what differs.
    """

    def __init__(self, folder: str | os.PathLike[str], facts: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        claim(self.folder / RUN_FILE, facts)

    def begin(self, task: RetrievalTask, digest: str) -> None:
        """
        Note what a task asks; `digest` is its `task_digest`.

        Raises:
            ValueError: if the task of this name was another one before.
        """
        facts = {"name": task.name, "metric": task.metric, "data": dict(task.data), "digest": digest}
        claim(
            rows_path(self.folder, task.name, TASK_FILE).with_name(TASK_FILE),
            facts,
            what=f"{task.name} in {self.folder}",
        )

    def find(self, task: str, mode: str) -> Measured | None:
        """What was measured before."""
        path = numbers_path(self.folder, task, mode)
        if not path.is_file():
            return None
        return Measured(json.loads(path.read_text(encoding="utf-8")), read_rows(rows_path(self.folder, task, mode)))

    def keep(self, task: str, mode: str, measured: Measured) -> None:
        """Keep what is measured: the numbers come last, for they say that it is done."""
        write_rows(rows_path(self.folder, task, mode), measured.rows)
        save_results(measured.numbers, numbers_path(self.folder, task, mode))


def task_digest(task: RetrievalTask) -> str:
    """
    A digest of all that a task asks: 32 hexadecimal digits.

    Where `data` says what the inputs are, they are not read; where it is empty, their content counts.
    """
    digest = blake2b(digest_size=16)
    facts = [task.metric, task.query_prompt, task.candidate_prompt, dict(task.data), list(task.candidate_ids)]
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for row, query in enumerate(task.query_ids):
        pool = None if task.pools is None else list(task.pools[row])
        cluster = None if task.clusters is None else task.clusters[row]
        digest.update(json.dumps([query, sorted(task.relevance[row].items()), cluster, pool]).encode() + b"\n")
    if not task.data:
        from mmemb_r1._content import content_key

        for inputs in (task.queries, task.candidates):
            for number in range(len(inputs)):
                digest.update(content_key(inputs[number]))
    return digest.hexdigest()
