"""Make the file that the leaderboard of MMEB takes from results, and check it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmemb_r1.evaluation.mmeb.catalogue import METRICS, MODALITIES, NUM_TASKS, TASKS, task_named
from mmemb_r1.evaluation.mmeb.claims import overall, page_names, scores_of
from mmemb_r1.runs import replaced_file

METADATA: Mapping[str, tuple[type, ...]] = {
    "model_name": (str,),
    "model_backbone": (str,),
    "model_size": (str, int, float),
    "embedding_dimension": (int,),
    "max_length_tokens": (int,),
    "model_release_date": (str,),
    "data_source": (str,),
    "url": (str,),
}
GENERATED = "report_generated_date"
COUNTS = ("num_pred", "num_data")
_METRIC = re.compile(r"(hit|ndcg_linear|ndcg_exponential|precision|recall|f1|map|mrr)@[1-9]\d*")


def submission(results: Mapping[str, Any], mode: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """
    Make the leaderboard's JSON of a complete run.

    Args:
        results: of `run_evaluation`, over all 78 tasks. The page tasks go under the names that they have there: fixed
            ones with `-fixed`, old ones without; never some of each.
        mode: the reasoning mode that is submitted.
        metadata: the keys of `METADATA`; all but the name may be `None`, `data_source` defaults to `"Self-Reported"`.

    Returns:
        `{"metadata": {...}, "metrics": {modality: {task: {"hit@1": ..., "num_pred": ..., "num_data": ...}}}}`: of a
        task all metrics of the results that have a cutoff.

    Raises:
        ValueError: if the run allows no overall, or metadata are missing, unknown or of the wrong type.
    """
    scores = scores_of(results, mode)
    overall(scores)  # refuses what is not complete
    renamed = page_names(scores)
    metrics: dict[str, dict[str, Any]] = {modality: {} for modality in MODALITIES}
    for name, task in TASKS.items():
        name = renamed.get(name, name)
        measured = results["tasks"][name]["modes"][mode]
        figures = {key: float(value) for key, value in measured.items() if _METRIC.fullmatch(key)}
        counts = dict.fromkeys(COUNTS, scores[name].num_queries)
        metrics[task.modality][name] = {task.metric: scores[name].score, **figures, **counts}
    filled = {"data_source": "Self-Reported", **metadata}
    filled = {key: filled[key] for key in [*METADATA, *filled] if key in filled}  # in the usual order
    made = {"metadata": {**filled, GENERATED: datetime.now(UTC).isoformat()}, "metrics": metrics}
    validate_submission(made)
    return made


def check_tasks(names: Collection[str]) -> None:
    """Refuse tasks that no submission comes of, before they are run: one is missing, or old and fixed are mixed."""
    renamed = page_names(dict.fromkeys(names))
    needed = [renamed.get(name, name) for name in TASKS]
    if missing := [name for name in needed if name not in names]:
        raise ValueError(
            f"a submission is of all {NUM_TASKS} tasks of MMEB-V2; missing are {len(missing)}: {', '.join(missing)}"
        )


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Refuse metadata that are unknown or of the wrong type, before anything is run; some may be missing."""
    now = datetime.now(UTC).isoformat()
    whole = {**dict.fromkeys(METADATA), "model_name": "any", GENERATED: now, **metadata}
    _refuse(_metadata_problems(whole))


def validate_submission(submission: Any) -> None:
    """
    Check the parsed JSON of a submission: its fields, all 78 tasks under matching names, counts and ranges.

    Raises:
        ValueError: that lists all that is wrong.
    """
    if not isinstance(submission, Mapping) or set(submission) != {"metadata", "metrics"}:
        found = sorted(submission) if isinstance(submission, Mapping) else type(submission).__name__
        raise ValueError(f"a submission is an object of 'metadata' and 'metrics'; this is {found}")
    _refuse([*_metadata_problems(submission["metadata"]), *_metrics_problems(submission["metrics"])])


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ValueError("the submission can't be sent:\n" + "\n".join(f"- {problem}" for problem in problems))


def write_submission(submission: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Check a submission, see `validate_submission`, and write it as JSON. Returns the path."""
    validate_submission(submission)
    with replaced_file(path) as temporary:
        temporary.write_text(json.dumps(submission, indent=4) + "\n", encoding="utf-8")
    return Path(path)


def _metadata_problems(metadata: Any) -> list[str]:
    if not isinstance(metadata, Mapping):
        return [f"metadata is a {type(metadata).__name__}; expected an object"]
    problems = [f"metadata lacks {key!r}" for key in [*METADATA, GENERATED] if key not in metadata]
    for key, value in metadata.items():
        if key == GENERATED:
            problems += [] if _is_date(value) else [f"metadata's {key!r} is {value!r}; expected a date in ISO format"]
        elif key not in METADATA:
            problems.append(f"metadata has {key!r}; known are {', '.join(METADATA)}")
        elif value is None and key != "model_name":
            continue
        elif not isinstance(value, METADATA[key]) or isinstance(value, bool) or value == "":
            allowed = " or ".join(kind.__name__ for kind in METADATA[key])
            problems.append(f"metadata's {key!r} is {value!r}; expected {allowed}")
    return problems


def _is_date(value: Any) -> bool:
    try:
        return bool(datetime.fromisoformat(value))
    except (TypeError, ValueError):
        return False


def _metrics_problems(metrics: Any) -> list[str]:
    if not isinstance(metrics, Mapping) or set(metrics) != set(MODALITIES):
        found = sorted(metrics) if isinstance(metrics, Mapping) else type(metrics).__name__
        return [f"metrics are {found}; expected {', '.join(MODALITIES)}"]
    if bad := [f"{name} is no object of tasks" for name in MODALITIES if not isinstance(metrics[name], Mapping)]:
        return bad
    problems = []
    try:
        renamed = page_names(metrics["visdoc"])
    except ValueError as error:
        return [str(error)]
    for modality in MODALITIES:
        names = [renamed.get(name, name) for name, task in TASKS.items() if task.modality == modality]
        there = metrics[modality]
        if missing := [name for name in names if name not in there]:
            problems.append(f"{modality} lacks {', '.join(missing)}")
        if unknown := [name for name in there if name not in names]:
            problems.append(f"{modality} has {', '.join(unknown)}, none of its {len(names)} tasks")
        for name in names:
            if name in there:
                problems += [f"{name}: {problem}" for problem in _task_problems(name, modality, there[name])]
    return problems


def _task_problems(name: str, modality: str, entry: Any) -> list[str]:
    if not isinstance(entry, Mapping):
        return [f"it is {entry!r}; expected an object of metrics"]
    needed = (METRICS[modality], *COUNTS)
    problems = [f"it lacks {key!r}" for key in needed if key not in entry]
    for key, value in entry.items():
        if key in COUNTS:
            expected = task_named(name).num_queries
            problems += [] if value == expected else [f"{key} is {value!r}; MMEB-V2 has {expected} queries"]
        elif not _METRIC.fullmatch(key):
            problems.append(f"{key!r} is no metric of the leaderboard")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:  # nor NaN
            problems.append(f"{key} is {value!r}; expected a number between 0 and 1")
    return problems
