"""Measure a model on retrieval tasks: how well, how often it thought, and at what price."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1._progress import progress_bar
from mmemb_r1.evaluation.encoders.adaptive import Explains
from mmemb_r1.evaluation.encoders.factory import encoder_of
from mmemb_r1.evaluation.run.columns import Columns
from mmemb_r1.evaluation.run.folder import RESULTS_FILE, Measured, RunFolder, task_digest
from mmemb_r1.evaluation.run.results import FORMAT, Results, save_results
from mmemb_r1.evaluation.run.summary import summarise
from mmemb_r1.evaluation.run.task_runner import TaskRunner, in_turn
from mmemb_r1.evaluation.settings import Settings
from mmemb_r1.evaluation.tasks import RetrievalTask

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from mmemb_r1.embedding_cache import EmbeddingCache

PACKAGES = ("mmemb-r1", "sentence-transformers", "torch", "transformers")
CACHE_FOLDER = "cache"
KEPT_ROWS = ("score", "cluster")


def run_evaluation(
    model: Explains | SentenceTransformer,
    tasks: Iterable[RetrievalTask],
    settings: Settings | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    cache: EmbeddingCache | str | os.PathLike[str] | None = None,
    checkpoint: str | None = None,
    extras: Mapping[str, Mapping[str, Any]] | None = None,
    config: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Results:
    """
    Score a model on tasks, one by one, mode by mode.

    Candidates are embedded once per task, or once for several tasks that hold the same sequence of them. With
    `output`, every task and mode is written as soon as it is measured, and the same call goes on where a killed one
    stopped: nothing that is there is embedded again. The folder then holds

        run.json                         what makes it another run: checkpoint and settings
        tasks/<task>/task.json           what makes it another task: a digest of its data
        tasks/<task>/<mode>.json         means over the task's queries
        tasks/<task>/<mode>.parquet      a row per query, see `run.rows.read_rows`
        cache/                           vectors of mmemb-r1 models; may be removed when all is measured
        results.json                     what is returned

    Args:
        model: an [`MMEmbR1`], anything with its `explain`, or any sentence-transformers model, in the mode `"never"`.
        tasks: read one after the other; names have to be unique.
        settings: how. Default: `Settings()`.
        output: the folder. Default: nothing is written.
        cache: where vectors of mmemb-r1 models are kept, for other runs, too. Default: `cache` in `output`, so that
            a killed run loses a batch and not a task; without `output`, what the model has as its `embedding_cache`.
        checkpoint: what names the weights of a model with an `explain` of its own, another name for other weights;
            needed there with `output`. Of models whose weights are known it is taken from these, and refused.
        extras: task name -> what else to tell of it, say `{"majority": 0.25}`.
        config: what else to note about this run, say the model's name and the seed.
        progress: whether to show bars on standard error; defaults to `True`. A line per task and mode is logged.

    Returns:
        A dict that JSON can hold: `format`; `config`; `tasks`, per task `metric`, `groups`, `n`, `candidates`, `data`
        with a `digest`, and `modes`: per mode `score` with its `interval`, metrics, `invocation_ratio`,
        `mean_reasoning_tokens` and `seconds_per_query` (`None` if all vectors came from a cache); `no_image`, where
        measured, the scores of the modes without the queries' pictures; and `summary`, means over the tasks of each
        group and over all.

    Raises:
        ValueError: if there are no tasks, or two of one name; if `output` holds another checkpoint's run, one with
            other settings or of other data, or nothing tells which checkpoint's it is to hold; if a model can't do
            what the settings ask, or gives vectors that are not finite, too many or too few.
    """
    settings = settings or Settings()
    if output is not None and cache is None and hasattr(model, "embedding_cache"):
        cache = Path(output) / CACHE_FOLDER
    entries: dict[str, dict[str, Any]] = {}
    rows: dict[str, dict[str, Columns]] = {}
    with _opened(cache) as opened, progress_bar(progress) as bar:
        encoder = encoder_of(model, settings, opened)
        facts = identified(encoder.facts(), checkpoint, output, model)
        folder = None if output is None else RunFolder(output, {**facts, **asdict(settings)})
        runner = TaskRunner(encoder, settings, folder, bar)
        for task in in_turn(tasks, bar):
            digest = task_digest(task)
            measured = runner.measure(task, digest)
            rows[task.name] = {mode: {key: one.rows[key] for key in KEPT_ROWS} for mode, one in measured.items()}
            entries[task.name] = entry_of(task, digest, measured) | dict((extras or {}).get(task.name, {}))
    if not entries:
        raise ValueError("there is nothing to evaluate: no task was given")
    results = {
        "format": FORMAT,
        "config": {
            "modes": list(settings.modes),
            "batch_size": settings.batch_size,
            "document_reasoning": settings.document_reasoning,
            **encoder.reasoning_options(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "queries": sum(entry["n"] for entry in entries.values()),
            "versions": versions(),
            "checkpoint": facts["checkpoint"],
            **(config or {}),
        },
        "tasks": entries,
        "summary": summarise(entries, rows),
    }
    if output is not None:
        save_results(results, Path(output) / RESULTS_FILE)
    return results


def identified(
    facts: dict[str, Any], checkpoint: str | None, output: str | os.PathLike[str] | None, model: object
) -> dict[str, Any]:
    """
    The facts of a model with its checkpoint, named by the caller where the model does not tell.

    Raises:
        ValueError: if both tell, or neither does and a folder would hold what is measured: another model's numbers
            would be taken for this one's there.
    """
    kind = type(model).__name__
    if facts["checkpoint"] is not None:
        if checkpoint is not None:
            raise ValueError(
                f"checkpoint={checkpoint!r} was given for a {kind}, which is known by its weights; leave it out"
            )
        return facts
    if checkpoint is None and output is not None:
        raise ValueError(
            f"the weights of this {kind} are not known, so that another one's numbers could be taken for its own in "
            f"{os.fspath(output)}; name them, checkpoint='name of these weights', or leave output out"
        )
    return {**facts, "checkpoint": checkpoint}


def entry_of(task: RetrievalTask, digest: str, measured: Mapping[str, Measured]) -> dict[str, Any]:
    """What results tell of a task."""
    modes = {mode: dict(one.numbers) for mode, one in measured.items()}
    no_image = {mode: numbers.pop("no_image") for mode, numbers in modes.items() if "no_image" in numbers}
    return {
        "metric": task.metric,
        "groups": dict(task.groups),
        **({"complexity": task.groups["complexity"]} if "complexity" in task.groups else {}),
        "n": len(task.query_ids),
        "candidates": len(task.candidate_ids),
        "data": {**task.data, "digest": digest},
        "modes": modes,
        **({"no_image": no_image} if no_image else {}),
    }


def versions() -> dict[str, str]:
    """Those of the packages that decide what is measured."""
    return {package: version(package) for package in PACKAGES}


@contextmanager
def _opened(cache: EmbeddingCache | str | os.PathLike[str] | None) -> Iterator[EmbeddingCache | None]:
    """A cache by its folder is closed again; one that was opened elsewhere stays open."""
    if not isinstance(cache, str | os.PathLike):
        yield cache
        return
    from mmemb_r1.embedding_cache import EmbeddingCache

    with EmbeddingCache(cache) as opened:
        yield opened
