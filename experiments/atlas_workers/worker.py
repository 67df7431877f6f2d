"""The worker that writes scripted rationales of known quality for an Atlas."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.atlas_workers.look_alikes import LookAlikes
from experiments.atlas_workers.scripted import BEHAVIOURS, right_rationale, scripted_rationale
from mmemb_r1.atlas import load_atlas
from mmemb_r1.atlas.build import MANIFEST
from mmemb_r1.atlas.drawings import PERCEPTUAL_TASKS
from mmemb_r1.atlas.splits import TRAIN, split_questions
from mmemb_r1.atlas.tables import NAME_TASKS, NOTO_TASK, make_pair_id
from mmemb_r1.atlas.tasks import AtlasQuestion
from mmemb_r1.atlas.world import World, make_world
from mmemb_r1.modeling.media_mmemb_r1 import open_image
from mmemb_r1.training.rationales.worker import SIDES, Failure, Rationale, RationaleRequest, WorkerError
from mmemb_r1.training.tables import stored_column

if TYPE_CHECKING:
    from mmemb_r1.atlas.build import Atlas


def recall(atlas: Atlas) -> tuple[World, dict[str, AtlasQuestion]]:
    """Rebuild the world that an Atlas shows, and map each pair id to the question of that pair.

    Args:
        atlas (`Atlas`): built by this version of the package from the installed sources.

    Raises:
        ValueError: it was built by another version or from other sources.
        ImportError: a source package is missing (`pip install 'mmemb-r1[atlas]'`).
    """
    arguments = atlas.manifest["arguments"]
    world = make_world(*(arguments[name] for name in ("size", "num_objects", "num_countries", "num_drawings")))
    asked: dict[str, AtlasQuestion] = {}
    by_split = split_questions(world, seed=arguments["seed"], generated_rows=arguments["generated_rows"])
    for split, questions in by_split.items():
        for question in questions:
            asked[make_pair_id(split, question)] = question
            if question.task in NAME_TASKS:
                asked[make_pair_id(split, question, NOTO_TASK)] = question
    for pairs in atlas.pairs.values():
        columns = (pairs[column] for column in ("pair_id", "target_id", "query_rationale", "target_rationale"))
        for pair_id, target_id, *rationales in zip(*columns, strict=True):
            known = asked.get(pair_id)
            stated = known and [known.answer, [*known.rationale], [*known.answer_rationale]]
            if stated != [target_id, *rationales]:
                raise ValueError(
                    f"The Atlas in {str(atlas.directory)!r} was built by another version of the package or of its "
                    f"sources (see its pair {pair_id!r}). Build it again: mmemb-r1 atlas build --output "
                    f"{atlas.directory}"
                )
    return world, asked


@dataclass
class AtlasWorker:
    """
    A worker that writes scripted rationales for the inputs of an Atlas. It recognises an input by its text and the
    pixels of its pictures.

    Args:
        name: names the worker in the table.
        atlas: folder of an Atlas.
        behaviour: `"correct"`, `"confused"`, `"verbose"`, `"format"`, `"generic"`, `"leaky"`, `"restating"` or
            `"needless"`; see `scripted_rationale`. Only the first helps (`helps`).
        num_samples: rationales per input.
        batch_size: inputs per call.

    Raises:
        ValueError: naming the key that is wrong.
    """

    name: str
    atlas: str | os.PathLike[str]
    behaviour: str
    num_samples: int = 4
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.behaviour not in BEHAVIOURS:
            raise ValueError(
                f"worker {self.name!r}: behaviour is {self.behaviour!r}; allowed: {', '.join(BEHAVIOURS)}."
            )
        if not isinstance(self.atlas, str | os.PathLike) or not (Path(self.atlas) / MANIFEST).is_file():
            raise ValueError(
                f"worker {self.name!r}: atlas is {str(self.atlas)!r}, which holds no Atlas. Build one: "
                "mmemb-r1 atlas build --output FOLDER"
            )
        for key in ("num_samples", "batch_size"):
            value = getattr(self, key)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"worker {self.name!r}: {key} is {value!r}; allowed: a whole number of at least 1.")

    @property
    def definition(self) -> dict[str, Any]:
        """The Atlas by its content, wherever it lies, and the behaviour."""
        return {"kind": "atlas", "atlas": self._content_hash, "behaviour": self.behaviour}

    def draw(self, requests: Sequence[RationaleRequest]) -> list[list[Rationale | Failure]]:
        """
        Write the rationale of each input, once per seed.

        A target that is text gets none: it needs no rationale. An input that is not in this Atlas, or
        that can't be read, is a `Failure`.

        Raises:
            WorkerError: if the Atlas was built by another version of the package or from other sources.
        """
        memory = self._memory  # of all requests at once: an Atlas that can't be used must not look like bad inputs
        return [self._rationales(request, memory) for request in requests]

    def _rationales(self, request: RationaleRequest, memory: Memory) -> list[Rationale | Failure]:
        try:
            key = input_key(request.side, request.input)
        except ValueError as error:
            return [Failure(str(error))] * len(request.seeds)
        if key not in memory.questions:
            reason = f"this {request.side} is not in the Atlas in {str(self.atlas)!r}; draw from its own tables"
            return [Failure(reason)] * len(request.seeds)
        question = memory.questions[key]
        if question is None:
            return []
        texts = (
            scripted_rationale(self.behaviour, question, request.side, seed, memory.look_alikes)
            for seed in request.seeds
        )
        return [Rationale(text, len(text.split()), "stop") for text in texts if text is not None]

    @cached_property
    def _content_hash(self) -> str:
        manifest = json.loads((Path(self.atlas) / MANIFEST).read_text(encoding="utf-8"))
        return str(manifest["content_hash"])

    @cached_property
    def _memory(self) -> Memory:
        try:
            return _remember(Path(self.atlas).resolve(), self._content_hash)
        except (ValueError, ImportError) as error:
            raise WorkerError(f"worker {self.name!r}: {error}") from error


@dataclass(frozen=True)
class Memory:
    """
    What the workers of one Atlas share.

    Args:
        questions: key of an input -> the question it belongs to; `None` for a target that is text.
        look_alikes: what can be mistaken for what.
    """

    questions: dict[bytes, AtlasQuestion | None]
    look_alikes: LookAlikes


@lru_cache(maxsize=1)
def _remember(directory: Path, content_hash: str) -> Memory:  # the hash: an Atlas may be replaced
    atlas = load_atlas(directory)
    world, asked = recall(atlas)
    questions: dict[bytes, AtlasQuestion | None] = {}
    for pairs in atlas.pairs.values():
        for side in SIDES:
            for pair_id, value in zip(pairs["pair_id"], stored_column(pairs, side).to_pylist(), strict=True):
                question = asked[pair_id]
                questions.setdefault(input_key(side, value), question if right_rationale(question, side) else None)
    naming = {
        (question.candidate_set, question.answer): question
        for question in asked.values()
        if question.task in ("name-picture", *PERCEPTUAL_TASKS)
    }
    columns = (atlas.candidates[name] for name in ("candidate_set", "candidate_id"))
    candidates = stored_column(atlas.candidates, "input").to_pylist()
    for candidate_set, candidate_id, value in zip(*columns, candidates, strict=True):
        known = naming[candidate_set, candidate_id] if value["image"] else None
        questions.setdefault(input_key("target", value), known)
    trained = (question for pair_id, question in asked.items() if pair_id.startswith(f"{TRAIN}/"))
    return Memory(questions, LookAlikes(world, trained))


def input_key(side: str, value: Mapping[str, Any]) -> bytes:
    """
    A digest of what an input of one side holds: its text and the pixels of its pictures, however they are stored.

    Args:
        side: `"query"` or `"target"`.
        value: an input; pictures as `open_image` takes them.

    Raises:
        ValueError: if a picture can't be read.
    """
    pictures = value.get("image") or []
    digest = blake2b(f"{side} {value.get('text') or ''}".encode(), digest_size=16)
    for picture in pictures if isinstance(pictures, list | tuple) else [pictures]:
        image = open_image(picture)
        digest.update(f"{image.size}".encode() + image.tobytes())
    return digest.digest()
