"""Run the shortcut test on retrieval tasks: the model's own rationales, then others in their place."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmemb_r1.evaluation.diagnose.tester import ROWS_NAME, ShortcutSettings, ShortcutTester
from mmemb_r1.evaluation.diagnose.verdict import join_outcomes, summarise_outcomes
from mmemb_r1.evaluation.encoders import AdaptiveEncoder
from mmemb_r1.evaluation.run_folder import Columns, RunFolder, save_results
from mmemb_r1.evaluation.runner import in_turn, versions
from mmemb_r1.evaluation.tasks import RetrievalTask, TaskSource, members_of
from mmemb_r1.runs import progress_bar

logger = logging.getLogger(__name__)
FORMAT = 1
RESULT_FILE = "shortcut.json"


def run_diagnosis(
    model: Any,
    tasks: Iterable[RetrievalTask] | TaskSource,
    settings: ShortcutSettings | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    config: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """
    Find out whether a model reads its rationales, on queries that all think.

    Every query is embedded after the rationale that the model wrote for it, and after what takes its place: nothing,
    an empty one, that of another query with other right candidates, and its own words shuffled. Candidates are
    embedded directly.

    With `output`, every task is written as soon as it is measured, and the same call goes on where a killed one
    stopped. The folder then holds

        run.json                         what makes it another test: checkpoint and settings
        tasks/<task>/task.json           what makes it another task: a digest of its data
        tasks/<task>/shortcut.parquet    a row per query: scores, cosines, the rationale, whose it was given
        shortcut.json                    what is returned

    Args:
        model: an [`MMEmbR1`].
        tasks, config, progress: as in `run_evaluation`.
        settings: how. Default: `ShortcutSettings()`.
        output: the folder. Default: nothing is written.

    Returns:
        A dict that JSON can hold: `format`; `config`; `tasks`, per task its `metric`, `groups` and what
        `verdict.summarise_outcomes` gives; `summary`, the same over the tasks of each group, and over all under `all`,
        whose `verdict` and `reason` are the test's.

    Raises:
        ValueError: if there are no tasks, or two of one name; the model is no mmemb-r1 checkpoint; `output` holds
            another test; or a rationale that is forced gives another vector than when the model decodes it.
    """
    settings, source = settings or ShortcutSettings(), TaskSource.of(tasks)
    if not hasattr(model, "explain"):
        raise ValueError(
            f"the shortcut test needs an mmemb-r1 checkpoint, which thinks; this is a {type(model).__name__}"
        )
    facts = AdaptiveEncoder(model, settings.encoding()).facts()
    folder = None if output is None else RunFolder(output, {"test": ROWS_NAME, **facts, **asdict(settings)})
    facts_of: dict[str, dict[str, Any]] = {}
    measured: dict[str, Columns] = {}
    with progress_bar(progress) as bar:
        tester = ShortcutTester(model, settings, folder, bar)
        for task in in_turn(source.tasks, bar):
            measured[task.name] = tester.measure(task)
            facts_of[task.name] = {"metric": task.metric, "groups": dict(task.groups)}
            logger.info("%s: %d queries", task.name, len(measured[task.name]["score"]))
    outcomes = join_outcomes(measured)
    members = members_of({name: of_task["groups"] for name, of_task in facts_of.items()})
    noted = {**asdict(settings), "versions": versions(), "checkpoint": facts["checkpoint"], **source.noted}
    results = {
        "format": FORMAT,
        "config": {**noted, **(config or {})},
        "tasks": {name: {**of_task, **summarise_outcomes(outcomes, [name])} for name, of_task in facts_of.items()},
        "summary": {
            group: {"tasks": len(names), **summarise_outcomes(outcomes, names)} for group, names in members.items()
        },
    }
    if output is not None:
        save_results(results, Path(output) / RESULT_FILE)
    return results
