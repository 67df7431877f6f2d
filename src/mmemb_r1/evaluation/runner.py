"""Measure a model on retrieval tasks: how well, how often it thought, and at what price."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmemb_r1._progress import progress_bar
from mmemb_r1.evaluation.candidate_vectors import CandidateVectors
from mmemb_r1.evaluation.encoders import DOCUMENT, QUERY, Embedded, Encoder, Explains, embed_all, encoder_of
from mmemb_r1.evaluation.results import FORMAT, Results, save_results
from mmemb_r1.evaluation.run_folder import RESULTS_FILE, Measured, Rows, RunFolder, task_digest
from mmemb_r1.evaluation.scoring import Scored, score_queries
from mmemb_r1.evaluation.settings import Settings
from mmemb_r1.evaluation.summary import interval, summarise
from mmemb_r1.evaluation.tasks import RetrievalTask, clusters_of

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from sentence_transformers import SentenceTransformer

    from mmemb_r1.embedding_cache import EmbeddingCache

logger = logging.getLogger(__name__)

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
        tasks/<task>/<mode>.parquet      a row per query, see `run_folder.read_rows`
        cache/                           vectors of mmemb-r1 models; may be removed when all is measured
        results.json                     what is returned

    Args:
        model: an [`MMEmbR1`], anything with its `explain`, or any sentence-transformers model, in the mode `"never"`.
        tasks: read one after the other; names have to be unique.
        settings: how. Default: `Settings()`.
        output: the folder. Default: nothing is written.
        cache: where vectors of mmemb-r1 models are kept, for other runs, too. Default: `cache` in `output`, so that
            a killed run loses a batch and not a task; without `output`, what the model has as its `embedding_cache`.
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
            other settings or of other data; if a model can't do what the settings ask, or gives vectors that are not
            finite, too many or too few.
    """
    settings = settings or Settings()
    if output is not None and cache is None and hasattr(model, "embedding_cache"):
        cache = Path(output) / CACHE_FOLDER
    entries: dict[str, dict[str, Any]] = {}
    rows: dict[str, dict[str, Rows]] = {}
    with _opened(cache) as opened, progress_bar(progress) as bar:
        encoder = encoder_of(model, settings, opened)
        facts = encoder.facts()
        folder = None if output is None else RunFolder(output, {**facts, **asdict(settings)})
        runner = _Runner(encoder, settings, folder, bar)
        overall = bar.add_task("tasks", total=len(tasks) if isinstance(tasks, Sized) else None)
        for task in tasks:
            if task.name in entries:
                raise ValueError(f"two of the tasks are called {task.name!r}; names have to be unique")
            digest = task_digest(task)
            measured = runner.measure(task, digest)
            rows[task.name] = {mode: {key: one.rows[key] for key in KEPT_ROWS} for mode, one in measured.items()}
            entries[task.name] = entry_of(task, digest, measured) | dict((extras or {}).get(task.name, {}))
            bar.advance(overall)
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
            "versions": {package: version(package) for package in PACKAGES},
            "checkpoint": facts["checkpoint"],
            **(config or {}),
        },
        "tasks": entries,
        "summary": summarise(entries, rows),
    }
    if output is not None:
        save_results(results, Path(output) / RESULTS_FILE)
    return results


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


class _Runner:
    """One evaluation."""

    def __init__(self, encoder: Encoder, settings: Settings, folder: RunFolder | None, bar: Progress) -> None:
        self.encoder, self.settings, self.folder, self.bar = encoder, settings, folder, bar
        self.candidates = CandidateVectors()

    def measure(self, task: RetrievalTask, digest: str) -> dict[str, Measured]:
        """A task in all modes: what is not in the folder is measured, and kept there."""
        if self.folder is not None:
            self.folder.begin(task, digest)
        measured = {}
        for mode in self.settings.modes:
            found = None if self.folder is None else self.folder.find(task.name, mode)
            if found is None:
                found = self._in_mode(task, mode)
                if self.folder is not None:
                    self.folder.keep(task.name, mode, found)
                logger.info("%s, %s: %s %.3f", task.name, mode, task.metric, found.numbers["score"])
            measured[mode] = found
        return measured

    def _in_mode(self, task: RetrievalTask, mode: str) -> Measured:
        answers = self._candidates(task)
        embedded = self._embed(task, mode, task.queries, task.query_ids)
        scored = score_queries(task, embedded.embeddings, answers)
        rows = rows_of(task, embedded, scored, rationales=self.settings.rationales)
        numbers = numbers_of(task, embedded, scored, rows)
        if self.settings.no_image and mode != "auto" and (blind := without_images(task.queries)):
            numbers["no_image"] = self._blind_score(task, mode, blind, answers)
        return Measured(numbers, rows)

    def _blind_score(
        self, task: RetrievalTask, mode: str, queries: Sequence[Any], answers: npt.NDArray[np.float32]
    ) -> float:
        from mmemb_r1._content import distinct

        unique, index = distinct(queries)  # many are the same question
        embedded = self._embed(task, mode, unique, None)
        return float(score_queries(task, embedded.embeddings[index], answers).metrics[task.metric].mean())

    def _embed(self, task: RetrievalTask, mode: str, queries: Sequence[Any], ids: Sequence[str] | None) -> Embedded:
        return self._embed_side(QUERY, f"{task.name} {mode}", queries, mode, task.query_prompt, ids)

    def _candidates(self, task: RetrievalTask) -> npt.NDArray[np.float32]:
        """Vectors `(C, D)`."""
        return self.candidates.of(
            task,
            lambda task: (
                self._embed_side(
                    DOCUMENT,
                    f"{task.name} candidates",
                    task.candidates,
                    self.settings.document_reasoning,
                    task.candidate_prompt,
                    task.candidate_ids,
                ).embeddings
            ),
        )

    def _embed_side(
        self, side: str, name: str, inputs: Sequence[Any], mode: str, prompt: str | None, ids: Sequence[str] | None
    ) -> Embedded:
        step: TaskID = self.bar.add_task(name, total=len(inputs))
        try:
            return embed_all(
                self.encoder,
                inputs,
                side=side,
                reasoning=mode,
                batch_size=self.settings.batch_size,
                prompt=prompt,
                ids=ids,
                advance=lambda count: self.bar.advance(step, count),
            )
        finally:
            self.bar.remove_task(step)


def rows_of(task: RetrievalTask, embedded: Embedded, scored: Scored, *, rationales: bool) -> Rows:
    """The columns of a task's rows, see [`Measured`]."""
    count = len(task.query_ids)
    nothing = [None] * count
    thoughts = embedded.rationales if rationales and embedded.rationales is not None else nothing
    texts = [_text(task.queries[row]) for row in range(count)] if rationales else nothing
    return {
        "query_id": np.array(task.query_ids, dtype=object),
        "cluster": np.array(clusters_of(task), dtype=object),
        "score": scored.metrics[task.metric],
        "rank": scored.rank,
        "margin": scored.margin,
        "alignment": scored.alignment,
        "gate_prob": np.full(count, np.nan) if embedded.gate_prob is None else embedded.gate_prob,
        "reasoned": embedded.reasoned,
        "num_reasoning_tokens": embedded.num_reasoning_tokens,
        "num_reasoning_rounds": embedded.num_reasoning_rounds,
        "rationale": np.array(thoughts, dtype=object),
        "query_text": np.array(texts, dtype=object),
    }


def _text(query: Any) -> str | None:
    """What a query asks in words."""
    text = query.get("text") if isinstance(query, Mapping) else query
    return text if isinstance(text, str) else None


def numbers_of(task: RetrievalTask, embedded: Embedded, scored: Scored, rows: Rows) -> dict[str, Any]:
    """Means over a task's queries."""
    return {
        "score": float(rows["score"].mean()),
        "interval": interval(rows["score"], rows["cluster"]),
        **{name: float(values.mean()) for name, values in scored.metrics.items()},
        "invocation_ratio": float(embedded.reasoned.mean()),
        "mean_reasoning_tokens": float(embedded.num_reasoning_tokens.mean()),
        "seconds_per_query": embedded.seconds_per_input,
    }


def without_images(queries: Sequence[Any]) -> list[Any] | None:
    """
    Queries without their pictures; `None` if there are none, or one has no text that would remain.

    >>> without_images([{"text": "capital?", "image": ["flag.png"]}, {"text": "capital of Peru?"}])
    [{'text': 'capital?'}, {'text': 'capital of Peru?'}]
    """
    values = [queries[row] for row in range(len(queries))]
    if not all(isinstance(value, Mapping) and value.get("text") for value in values):
        return None
    if not any(value.get("image") for value in values):
        return None
    return [{key: part for key, part in value.items() if key != "image"} for value in values]


@contextmanager
def _opened(cache: EmbeddingCache | str | os.PathLike[str] | None) -> Iterator[EmbeddingCache | None]:
    """A cache by its folder is closed again; one that was opened elsewhere stays open."""
    if not isinstance(cache, str | os.PathLike):
        yield cache
        return
    from mmemb_r1.embedding_cache import EmbeddingCache

    with EmbeddingCache(cache) as opened:
        yield opened
