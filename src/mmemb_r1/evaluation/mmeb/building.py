"""Build a `RetrievalTask` from rows of annotations: candidates are told apart by what they hold, none is left out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mmemb_r1.content import given_parts
from mmemb_r1.evaluation.mmeb.annotations import Media, noted_revision
from mmemb_r1.evaluation.mmeb.catalogue import MMEBTask
from mmemb_r1.evaluation.tasks import RetrievalTask

logger = logging.getLogger(__name__)
PLACEHOLDER = "<|image_1|>"  # where a picture stands in the annotations' texts; ours is a part of its own


class TaskBuilder:
    """
    Collects the queries and candidates of a task of the catalogue, from the local copy in `folder`.

    Attributes:
        media: its pictures and frames, `num_frames` of each video.
        merged: candidates that stood in one query's pool more than once.
    """

    def __init__(self, task: MMEBTask, folder: Path, num_frames: int) -> None:
        self.task, self.folder = task, folder
        self.media = Media(task, folder, num_frames)
        self.merged = 0
        self._candidates: dict[str, Any] = {}  # id -> input
        self._ids: dict[str, str] = {}  # content -> id
        self._queries: dict[str, Any] = {}
        self._relevance: list[dict[str, float]] = []
        self._pools: list[list[str]] = []
        self._clusters: list[str] = []

    def candidate(self, name: str, **parts: Any) -> str:
        """
        Add a candidate of these parts, unless one that holds the same is there, and return the id of that one.

        Another candidate of the same `name` that holds something else makes it `name #2`.
        """
        value = given_parts(parts)
        content = json.dumps(value, sort_keys=True)
        if content not in self._ids:
            unique, number = name, 1
            while unique in self._candidates:
                number += 1
                unique = f"{name} #{number}"
            self._ids[content] = unique
            self._candidates[unique] = value
        return self._ids[content]

    def query(
        self, query_id: str, value: Mapping[str, Any], pool: Iterable[str], relevant: Mapping[str, float], cluster: str
    ) -> None:
        """Add a query: its input, the candidates its row names, the right ones -> grade, and what it is about."""
        if query_id in self._queries:
            raise self.error(query_id, "another query has the same id")
        named = list(pool)
        unique = list(dict.fromkeys(named))
        self.merged += len(named) - len(unique)
        self._queries[query_id] = dict(value)
        self._relevance.append(dict(relevant))
        self._pools.append(unique)
        self._clusters.append(f"{self.task.name}/{cluster}")  # ids of two datasets can be equal by chance

    def error(self, query_id: str, what: str) -> ValueError:
        """Make an error that says where in the annotations something is wrong."""
        return ValueError(f"{self.task.name}, query {query_id}: {what}. The local copy is not what MMEB-V2 holds.")

    def warn(self, names: Sequence[str], what: str) -> None:
        """Warn of what is odd about some of the task's media, if there are any."""
        if names:
            logger.warning("%s: %d %s (%s).", self.task.name, len(names), what, ", ".join(names[:3]))

    def build(self, pages: tuple[Sequence[str], Sequence[Any], Mapping[str, int]] | None = None) -> RetrievalTask:
        """Make the task; `pages` are candidates that are not in memory: ids, inputs, and file -> its size in bytes."""
        task = self.task
        ids, inputs, sizes = pages or (list(self._candidates), list(self._candidates.values()), {})
        if len(self._queries) != task.num_queries:
            logger.warning(
                f"{task.name}: there are {len(self._queries)} queries, MMEB-V2 has {task.num_queries}; its score will "
                f"count for no mean. Copy all of {task.dataset}."
            )
        return RetrievalTask(
            name=task.name,
            metric=task.metric,
            groups=task.groups,
            query_ids=list(self._queries),
            queries=list(self._queries.values()),
            candidate_ids=ids,
            candidates=inputs,
            relevance=self._relevance,
            pools=self._pools if task.pool == "local" else None,
            query_prompt=task.query_instruction,
            candidate_prompt=task.candidate_instruction,
            clusters=self._clusters,
            data={
                "benchmark": "MMEB-V2",
                "dataset": task.dataset,
                "config": task.config,
                "split": task.split,
                "revision": noted_revision(task, self.folder),
                "expected_queries": task.num_queries,
                "queries": len(self._queries),
                "merged_candidates": self.merged,
                "num_frames": self.media.num_frames if task.modality == "video" else None,
                "digest": self._digest(ids, [] if pages else inputs, sizes),
            },
        )

    def _digest(self, candidate_ids: Sequence[str], candidates: Sequence[Any], sizes: Mapping[str, int]) -> str:
        """Digest all that is asked, and the names and sizes of the files it is asked about, which are not read."""
        digest = blake2b(digest_size=32)
        root = f"{self.folder}/"

        def add(kind: str, values: Iterable[Any]) -> None:
            for value in values:
                digest.update(f"{kind} {json.dumps(value, sort_keys=True)}\n".encode())

        def portable(value: Any) -> Any:  # wherever the copy lies
            if isinstance(value, dict):
                return {key: portable(part) for key, part in value.items()}
            if isinstance(value, list):
                return [portable(part) for part in value]
            return value.removeprefix(root) if isinstance(value, str) else value

        add("prompt", [self.task.query_instruction, self.task.candidate_instruction])
        add("query", portable([[name, value] for name, value in self._queries.items()]))
        add("candidate", candidate_ids)
        add("input", portable(list(candidates)))
        add("relevant", self._relevance)
        if self.task.pool == "local":
            add("pool", self._pools)
        add("file", sorted({**self.media.sizes, **sizes}.items()))
        return digest.hexdigest()


def plain(text: str | None) -> str:
    """
    Strip a text of the annotations of the picture's placeholder and the space around it.

    >>> plain("<|image_1|>\\nRepresent the given image.\\n")
    'Represent the given image.'
    """
    return (text or "").replace(PLACEHOLDER, " ").strip()
