"""Run an evaluation: tasks x modes -> encode -> score -> rows -> means -> report."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.encoders import DOCUMENT, QUERY, Embedded, Encoder, Explains, embed_all, encoder_of
from mmemb_r1.evaluation.report import write_reports
from mmemb_r1.evaluation.run_folder import FORMAT, Columns, Measured, Results, RunFolder, task_digest
from mmemb_r1.evaluation.scoring import CandidateVectors, Scored, joined_scores, score_queries
from mmemb_r1.evaluation.settings import SAME, Settings
from mmemb_r1.evaluation.statistics import clustered_bootstrap
from mmemb_r1.evaluation.tasks import RetrievalTask, TaskSource, clusters_of, members_of
from mmemb_r1.progress import progress_bar, step_of

if TYPE_CHECKING:
    from rich.progress import Progress
    from sentence_transformers import SentenceTransformer

    from mmemb_r1.embedding_cache import EmbeddingCache


logger = logging.getLogger(__name__)
PACKAGES = ("mmemb-r1", "sentence-transformers", "torch", "transformers")
CACHE_FOLDER = "cache"
KEPT_ROWS = ("score", "cluster")  # for the means over tasks
NO_MEANS = ("interval", "no_image")
FIXED = ("never", "always")  # modes that are also asked without pictures


def run_evaluation(
    model: Explains | SentenceTransformer,
    tasks: Iterable[RetrievalTask] | TaskSource,
    settings: Settings | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    cache: EmbeddingCache | str | os.PathLike[str] | None = None,
    checkpoint: str | None = None,
    config: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Results:
    """
    Score a model on tasks, one by one, mode by mode.

    Candidates are embedded once per task, or once for several tasks that hold the same sequence of them. With
    `output`, every task and mode is written as soon as it is measured, and the same call goes on where a killed one
    stopped. docs/evaluation.md says what the folder holds.

    Args:
        model: an [`MMEmbR1`], anything with its `explain`, or any sentence-transformers model, in the mode `"never"`.
        tasks: what `read_tasks` returned, or tasks of one's own; names have to be unique.
        settings: how. Default: `Settings()`.
        output: the folder for rows, results and reports. Default: nothing is written.
        cache: where vectors of mmemb-r1 models are kept. Default: `cache` in `output`, so that a killed run loses a
            batch and not a task; without `output`, what the model has as its `embedding_cache`.
        checkpoint: what names the weights of a model with an `explain` of its own; needed there with `output`, refused
            of models whose weights are known.
        config: what else to note about this run, say the model's name and the seed.
        progress: whether to show bars on standard error, if that is a terminal; defaults to `True`.

    Returns:
        A dict that JSON can hold: `format`; `config`; `tasks`, per task `metric`, `groups`, `n`, `candidates`, `data`
        with a `digest`, its baselines, and `modes`: per mode, or pair of modes (see `mode_pairs`), `score` with its
        `interval` and metrics; of the queries `invocation_ratio`, `mean_reasoning_tokens` and `seconds_per_query`
        (`None` if all vectors came from a cache); of the candidates `document_invocation_ratio`,
        `mean_document_tokens` and `seconds_per_document`; `no_image`, where measured, the scores of the modes without
        the queries' pictures; `summary`, means over the tasks of each group and over all; and `overall`, of benchmarks
        that have one.

    Raises:
        ValueError: if there are no tasks, or two of one name; if `output` holds another run, or nothing tells which
            checkpoint's it is to hold; if a model can't do what the settings ask, or gives unfit vectors.
    """
    settings, source = settings or Settings(), TaskSource.of(tasks)
    if output is not None and cache is None and hasattr(model, "embedding_cache"):
        cache = Path(output) / CACHE_FOLDER
    with _opened(cache) as opened, progress_bar(progress) as bar:
        encoder = encoder_of(model, settings, opened)
        settings = settings.resolved(encoder.spaces)
        facts = _with_checkpoint(encoder.facts(), checkpoint, output, model)
        folder = None if output is None else RunFolder(output, {**facts, **asdict(settings)})
        runner = TaskRunner(encoder, settings, folder, bar)
        for task in in_turn(source.tasks, bar):
            runner.measure(task)
    config = {
        "modes": list(settings.pairs),
        "batch_size": settings.batch_size,
        "document_reasoning": settings.document_modes[0],  # of the modes that name none
        **encoder.reasoning_options(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "queries": sum(entry["n"] for entry in runner.entries.values()),
        "versions": versions(),
        "checkpoint": facts["checkpoint"],
        **{name: facts[name] for name in ("thinker", "engine") if name in facts},
        **source.noted,
        **(config or {}),
    }
    results = {"format": FORMAT, "config": config, "tasks": runner.entries}
    results["summary"] = summarise_tasks(runner.entries, runner.rows)
    if source.overall is not None:
        results["overall"] = source.overall(results)
    if output is not None:
        write_reports(results, Path(output))
    return results


def in_turn(tasks: Iterable[RetrievalTask], bar: Progress) -> Iterator[RetrievalTask]:
    """Yield the tasks, with a line of a bar for all; refuse two of one name, and none at all."""
    step = bar.add_task("tasks", total=len(tasks) if isinstance(tasks, Sized) else None)
    names = set()
    for task in tasks:
        if task.name in names:
            raise ValueError(f"two of the tasks are called {task.name!r}; names have to be unique")
        names.add(task.name)
        yield task
        bar.advance(step)
    if not names:
        raise ValueError("there is nothing to evaluate: no task was given")


class TaskRunner:
    """
    Measures the tasks of one evaluation, one after the other; `folder` keeps what is measured, if there is one. Each
    score is logged at `level`.

    Attributes:
        entries: task name -> what results tell of it.
        rows: task name -> mode -> those columns that the means over tasks need.
    """

    def __init__(
        self,
        encoder: Encoder,
        settings: Settings,
        folder: RunFolder | None,
        bar: Progress,
        level: int = logging.INFO,
    ) -> None:
        self.encoder, self.folder, self.bar, self.level = encoder, folder, bar, level
        self.settings = settings.resolved(encoder.spaces)
        self.candidates: CandidateVectors[Embedded] = CandidateVectors()
        self.entries: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, dict[str, Columns]] = {}

    def measure(self, task: RetrievalTask) -> None:
        """Measure a task in all modes, except what the folder holds already, and keep it there."""
        digest = task_digest(task)
        if self.folder is not None:
            self.folder.begin(task, digest)
        measured: dict[str, Measured] = {}
        queries: dict[str, Embedded] = {}
        documents: dict[str, Embedded] = {}  # held for all modes of the queries, however large
        for name, (mode, document) in self.settings.pairs.items():
            found = None if self.folder is None else self.folder.find(task.name, name)
            if found is None:
                if mode not in queries:
                    queries = {mode: self._embed(task, QUERY, mode, task.queries, task.query_ids)}
                kinds = [document] if document != SAME else _kinds(queries[mode])
                for kind in kinds:
                    if kind not in documents:
                        documents[kind] = self.candidates_in(task, kind)
                found = self._in_modes(task, name, queries[mode], {kind: documents[kind] for kind in kinds})
                if self.folder is not None:
                    self.folder.keep(task.name, name, found)
                logger.log(self.level, "%s, %s: %s %.3f", task.name, name, task.metric, found.numbers["score"])
            measured[name] = found
        self.rows[task.name] = {mode: {key: one.rows[key] for key in KEPT_ROWS} for mode, one in measured.items()}
        self.entries[task.name] = _entry(task, digest, measured)

    def _in_modes(
        self, task: RetrievalTask, mode: str, embedded: Embedded, documents: Mapping[str, Embedded]
    ) -> Measured:
        """Score queries among candidates; where these are of two kinds, `"never"` and `"always"`, among their own."""
        parts = {kind: score_queries(task, embedded.embeddings, one.embeddings) for kind, one in documents.items()}
        scored = next(iter(parts.values()))
        if len(parts) > 1:
            scored = joined_scores(embedded.reasoned, parts["always"], parts["never"])
        rows = _task_rows(task, embedded, scored, rationales=self.settings.rationales)
        numbers = _task_means(embedded, list(documents.values()), scored, rows)
        if self.settings.no_image and mode in FIXED and (blind := without_images(task.queries)):
            from mmemb_r1.content import distinct

            unique, index = distinct(blind)  # many are the same question
            vectors = self._embed(task, QUERY, mode, unique, None).embeddings[index]
            candidates = next(iter(documents.values())).embeddings
            numbers["no_image"] = float(score_queries(task, vectors, candidates).metrics[task.metric].mean())
        return Measured(numbers, rows)

    def candidate_vectors(self, task: RetrievalTask) -> npt.NDArray[np.float32]:
        """Embed the candidates of a task as the first mode of the queries needs them: `(C, D)`."""
        mode, document = next(iter(self.settings.pairs.values()))
        return self.candidates_in(task, mode if document == SAME else document).embeddings

    def candidates_in(self, task: RetrievalTask, mode: str) -> Embedded:
        """Embed the candidates of a task in a mode, unless they are those of one before; rationales are not kept."""

        def embed(task: RetrievalTask) -> Embedded:
            return replace(self._embed(task, DOCUMENT, mode, task.candidates, task.candidate_ids), rationales=None)

        return self.candidates.of(task, embed, mode)

    def _embed(
        self, task: RetrievalTask, side: str, mode: str, inputs: Sequence[Any], ids: Sequence[str] | None
    ) -> Embedded:
        what, prompt = (mode, task.query_prompt) if side == QUERY else ("candidates", task.candidate_prompt)
        with step_of(self.bar, f"{task.name} {what}", len(inputs)) as advance:
            return embed_all(
                self.encoder,
                inputs,
                side=side,
                reasoning=mode,
                batch_size=self.settings.batch_size,
                prompt=prompt,
                ids=ids,
                advance=advance,
            )


def _task_rows(task: RetrievalTask, embedded: Embedded, scored: Scored, *, rationales: bool) -> Columns:
    """Lay out the columns of a task's rows, see [`Measured`]."""
    count = len(task.query_ids)
    nothing = [None] * count
    written = (embedded.rationales if rationales else None) or nothing
    texts = [_text(task.queries[row]) for row in range(count)] if rationales else nothing
    return {
        "query_id": np.array(task.query_ids, dtype=object),
        "cluster": np.array(clusters_of(task), dtype=object),
        "score": scored.metrics[task.metric],
        "rank": scored.rank,
        "margin": scored.margin,
        "alignment": scored.target_probability,
        "gate_prob": np.full(count, np.nan) if embedded.gate_prob is None else embedded.gate_prob,
        "reasoned": embedded.reasoned,
        "num_reasoning_tokens": embedded.num_reasoning_tokens,
        "num_reasoning_rounds": embedded.num_reasoning_rounds,
        "rationale": np.array(written, dtype=object),
        "query_text": np.array(texts, dtype=object),
    }


def _text(query: Any) -> str | None:
    """Take the words of a query, if it has any."""
    text = query.get("text") if isinstance(query, Mapping) else query
    return text if isinstance(text, str) else None


def _kinds(queries: Embedded) -> list[str]:
    """List the modes of the candidates that some of the queries are compared with, each with those of its kind."""
    return [kind for kind, some in (("never", ~queries.reasoned), ("always", queries.reasoned)) if some.any()]


def _task_means(embedded: Embedded, documents: Sequence[Embedded], scored: Scored, rows: Columns) -> dict[str, Any]:
    """Average over a task's queries, and over its candidates what these took, in all the ways they are embedded."""
    seconds = [one.seconds_per_input for one in documents]
    known = [one for one in seconds if one is not None]
    return {
        "score": float(rows["score"].mean()),
        "interval": interval_ends(rows["score"], rows["cluster"]),
        **{name: float(values.mean()) for name, values in scored.metrics.items()},
        "invocation_ratio": float(embedded.reasoned.mean()),
        "mean_reasoning_tokens": float(embedded.num_reasoning_tokens.mean()),
        "seconds_per_query": embedded.seconds_per_input,
        "document_invocation_ratio": float(np.any([one.reasoned for one in documents], axis=0).mean()),
        "mean_document_tokens": float(sum(one.num_reasoning_tokens.mean() for one in documents)),
        "seconds_per_document": sum(known) if len(known) == len(seconds) else None,
    }


def without_images(queries: Sequence[Any]) -> list[Any] | None:
    """
    Take the pictures out of queries; `None` if there are none, or one has no text that would remain.

    >>> without_images([{"text": "capital?", "image": ["flag.png"]}, {"text": "capital of Peru?"}])
    [{'text': 'capital?'}, {'text': 'capital of Peru?'}]
    """
    values = [queries[row] for row in range(len(queries))]
    asked = all(isinstance(value, Mapping) and value.get("text") for value in values)
    if not asked or not any(value.get("image") for value in values):
        return None
    return [{key: part for key, part in value.items() if key != "image"} for value in values]


def _with_checkpoint(
    facts: dict[str, Any], checkpoint: str | None, output: str | os.PathLike[str] | None, model: object
) -> dict[str, Any]:
    """Complete the facts of a model by its checkpoint: the model tells it or, if there is a folder, the caller."""
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


def _entry(task: RetrievalTask, digest: str, measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Lay out what results tell of a task."""
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
        **task.baselines,
    }


def summarise_tasks(
    tasks: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Mapping[str, Columns]]
) -> dict[str, dict[str, Any]]:
    """
    Average over the tasks of each group, and over all of them under `all`, every task with the same weight.

    Takes name -> what results tell of a task, and name -> mode -> its rows, of which `score` and `cluster` are read.
    Returns group -> `tasks` and `n` (how many tasks and queries), `modes` (per mode the means of what all its tasks
    have, and the `interval` of the score), and `majority` if all have it. With a `None` among them a mean is `None`.
    """
    members = members_of({name: result["groups"] for name, result in tasks.items()})
    return {group: _summary(names, tasks, rows) for group, names in members.items()}


def _summary(
    names: Sequence[str], tasks: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Mapping[str, Columns]]
) -> dict[str, Any]:
    results = [tasks[name] for name in names]
    summary: dict[str, Any] = {"tasks": len(names), "n": sum(result["n"] for result in results), "modes": {}}
    for mode in results[0]["modes"]:
        numbers = [result["modes"][mode] for result in results]
        own = [rows[name][mode] for name in names]
        summary["modes"][mode] = {
            key: _mean([one[key] for one in numbers])
            for key in numbers[0]
            if key not in NO_MEANS and all(key in one for one in numbers)
        }
        scores, clusters = (np.concatenate([part[column] for part in own]) for column in KEPT_ROWS)
        of_task = [name for name, part in zip(names, own, strict=True) for _ in part["score"]]
        summary["modes"][mode]["interval"] = interval_ends(scores, clusters, of_task)
    if all("majority" in result for result in results):
        summary["majority"] = _mean([result["majority"] for result in results])
    return summary


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def interval_ends(scores: Any, clusters: Any, tasks: Sequence[str] | None = None) -> list[float]:
    """Find the 95 % interval of the mean of `(N,)` scores, or of the mean over tasks of their means."""
    found = clustered_bootstrap(scores, list(clusters), tasks)
    return [found.low, found.high]


def versions() -> dict[str, str]:
    """List the versions of the packages that decide what is measured."""
    return {package: version(package) for package in PACKAGES}


def _opened(
    cache: EmbeddingCache | str | os.PathLike[str] | None,
) -> AbstractContextManager[EmbeddingCache | None]:
    """Open a cache by its folder, and close it again; one that was opened elsewhere stays open."""
    if not isinstance(cache, str | os.PathLike):
        return nullcontext(cache)
    from mmemb_r1.embedding_cache import EmbeddingCache

    return EmbeddingCache(cache)
