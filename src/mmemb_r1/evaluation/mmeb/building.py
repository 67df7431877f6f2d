"""Build a `RetrievalTask` from rows of annotations: candidates are told apart by what they hold, none is left out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mmemb_r1.content import given_parts
from mmemb_r1.evaluation.mmeb.annotations import noted_revision
from mmemb_r1.evaluation.mmeb.catalogue import MMEBTask
from mmemb_r1.evaluation.mmeb.media import Media
from mmemb_r1.evaluation.tasks import RetrievalTask
from mmemb_r1.modeling.inputs_mmemb_r1 import EmptyText

logger = logging.getLogger(__name__)
PLACEHOLDER = "<|image_1|>"  # where a picture stands in the annotations' texts; ours is a part of its own


class TaskBuilder:
    """
    Collects the queries and candidates of a task of the catalogue, from the local copy in `folder`; without their
    `instructions`, if these are not wanted.

    Attributes:
        media: its pictures and frames, `num_frames` of each video; `None`: all.
        merged: candidates that stood in one query's pool more than once.
        odd: what is odd about some of the rows, and is told -> their ids, or the names of their videos.
    """

    def __init__(self, task: MMEBTask, folder: Path, num_frames: int | None, instructions: bool = True) -> None:
        self.task, self.folder, self.instructions = task, folder, instructions
        self.media = Media(task, folder, num_frames)
        self.merged = 0
        self.odd: dict[str, dict[str, None]] = {}
        self._candidates: dict[str, Any] = {}  # id -> input
        self._ids: dict[str, str] = {}  # content -> id
        self._queries: dict[str, Any] = {}
        self._relevance: list[dict[str, float]] = []
        self._pools: list[list[str]] = []
        self._clusters: list[str] = []
        self._unanswerable: list[str] = []

    def candidate(self, name: str, **parts: Any) -> str:
        """
        Add a candidate of these parts, unless one that holds the same is there, and return the id of that one.

        Another candidate of the same `name` that holds something else makes it `name #2`.
        """
        value = self._input(name, parts)
        content = json.dumps(value, sort_keys=True)
        if content not in self._ids:
            unique, number = name or "(empty)", 1
            while unique in self._candidates:
                number += 1
                unique = f"{name or '(empty)'} #{number}"
            self._ids[content] = unique
            self._candidates[unique] = value
        return self._ids[content]

    def query(
        self, query_id: str, value: Mapping[str, Any], pool: Iterable[str], relevant: Mapping[str, float], cluster: str
    ) -> None:
        """
        Add a query: its input, the candidates its row names, the right ones -> grade, and what it is about. If none of
        the candidates is right, it scores 0.
        """
        if query_id in self._queries:
            raise self.error(query_id, "another query has the same id")
        named = list(pool)
        unique = list(dict.fromkeys(named))
        self.merged += len(named) - len(unique)
        if not relevant:
            self.note_odd(query_id, "none of its candidates is right: it scores 0")
            self._unanswerable.append(query_id)
        self._queries[query_id] = self._input(query_id, value)
        self._relevance.append(dict(relevant))
        self._pools.append(unique)
        self._clusters.append(f"{self.task.name}/{cluster}")  # ids of two datasets can be equal by chance

    def _input(self, name: str, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Make an input of the parts that there are; where there are none, or an instruction alone, an empty text."""
        kept = given_parts(parts)
        if not self.instructions:
            kept.pop("instruction", None)
        if not kept.keys() - {"instruction"}:
            self.note_odd(name, "empty: an empty text is embedded")
            kept["text"] = EmptyText()
        return kept

    def video(self, name: str, *, may_be_none: bool = False) -> list[str]:
        """Find the frames of a video, see `Media.frames`: of a single one twice, as the processors of Qwen2-VL do."""
        frames = self.media.frames(name, may_be_none=may_be_none)
        if len(frames) == 1 and self.media.num_frames != 1:
            self.note_odd(name, "a video of one frame, which is shown twice")
            return frames * 2
        return frames

    def note_odd(self, name: str, what: str) -> None:
        """Note that a row or a video is odd: it is embedded and scored, and told."""
        self.odd.setdefault(what, {})[name] = None

    def error(self, query_id: str, what: str) -> ValueError:
        """Make an error that says where in the annotations something is wrong."""
        return ValueError(f"{self.task.name}, query {query_id}: {what}. The local copy is not what MMEB-V2 holds.")

    def build(self, pages: tuple[Sequence[str], Sequence[Any], Mapping[str, int]] | None = None) -> RetrievalTask:
        """Make the task; `pages` are candidates that are not in memory: ids, inputs, and file -> its size in bytes."""
        task = self.task
        self.media.check()
        for what, names in self.odd.items():
            logger.warning("%s: %d odd rows or videos (%s): %s.", task.name, len(names), ", ".join([*names][:3]), what)
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
            query_prompt=self._prompts[0],
            candidate_prompt=self._prompts[1],
            clusters=self._clusters,
            unanswerable=self._unanswerable,
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
                **({} if self.instructions else {"instructions": "none"}),
                **({"odd_rows": {what: len(names) for what, names in self.odd.items()}} if self.odd else {}),
                "digest": self._digest(ids, [] if pages else inputs, sizes),
            },
        )

    @property
    def _prompts(self) -> list[str | None]:
        task = self.task
        return [task.query_instruction, task.candidate_instruction] if self.instructions else [None, None]

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

        add("prompt", self._prompts)
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
