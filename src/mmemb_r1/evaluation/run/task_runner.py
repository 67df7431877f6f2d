"""One task of an evaluation, mode by mode: embed, score, and keep what was measured."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmemb_r1._progress import step_of
from mmemb_r1.evaluation.encoders.encoder import DOCUMENT, QUERY, Embedded, Encoder
from mmemb_r1.evaluation.encoders.parts import embed_all
from mmemb_r1.evaluation.run.candidate_vectors import CandidateVectors
from mmemb_r1.evaluation.run.columns import Columns
from mmemb_r1.evaluation.run.folder import Measured, RunFolder
from mmemb_r1.evaluation.run.scoring import Scored, score_queries
from mmemb_r1.evaluation.run.summary import interval
from mmemb_r1.evaluation.settings import Settings
from mmemb_r1.evaluation.tasks import RetrievalTask, clusters_of

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)


def in_turn(tasks: Iterable[RetrievalTask], bar: Progress) -> Iterator[RetrievalTask]:
    """
    The tasks, one after the other, with a line of a bar for all.

    Raises:
        ValueError: if two are of one name.
    """
    step = bar.add_task("tasks", total=len(tasks) if isinstance(tasks, Sized) else None)
    names = set()
    for task in tasks:
        if task.name in names:
            raise ValueError(f"two of the tasks are called {task.name!r}; names have to be unique")
        names.add(task.name)
        yield task
        bar.advance(step)


class TaskRunner:
    """
    Measures the tasks of one evaluation, one after the other.

    Args:
        encoder: the model.
        settings: how.
        folder: where what is measured is kept and found again. `None`: nowhere.
        bar: shows how far it is.
    """

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
        answers = self.candidates.of(task, self._candidates)
        embedded = self._embed(task, mode, task.queries, task.query_ids)
        scored = score_queries(task, embedded.embeddings, answers)
        rows = rows_of(task, embedded, scored, rationales=self.settings.rationales)
        numbers = numbers_of(embedded, scored, rows)
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
        name, mode = f"{task.name} candidates", self.settings.document_reasoning
        return self._embed_side(
            DOCUMENT, name, task.candidates, mode, task.candidate_prompt, task.candidate_ids
        ).embeddings

    def _embed_side(
        self, side: str, name: str, inputs: Sequence[Any], mode: str, prompt: str | None, ids: Sequence[str] | None
    ) -> Embedded:
        with step_of(self.bar, name, len(inputs)) as advance:
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


def rows_of(task: RetrievalTask, embedded: Embedded, scored: Scored, *, rationales: bool) -> Columns:
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


def numbers_of(embedded: Embedded, scored: Scored, rows: Columns) -> dict[str, Any]:
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
