"""Let another model write the rationales: what a thinker is asked, what it answers, and how one is found."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmemb_r1._lazy import import_object
from mmemb_r1.file_formats import read_yaml
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError, parse_input
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions, open_image, parse_address
from mmemb_r1.modeling.videos_mmemb_r1 import open_video

# Makes a thinker of a worker's keys. Workers are part of training, far above; it is found by name, as users' own are.
OF_WORKER = "mmemb_r1.training.rationales.worker_thinker:thinker_of_worker"
SPECIFICATION = (
    "a YAML file of a worker's keys (kind, model, ...) or a dict of these, module:name for one of your own, or an "
    "object with `definition` and `think`"
)


@dataclass(frozen=True)
class Thought:
    """
    Hold a rationale.

    Attributes:
        text: without tags; not blank.
        is_cut: whether a budget ended it.
    """

    text: str
    is_cut: bool = False


@dataclass(frozen=True)
class NoThought:
    """Say why a thinker has no rationale for an input, after all its tries."""

    reason: str


class Thinker(Protocol):
    """Write rationales for inputs that another model embeds."""

    @property
    def definition(self) -> dict[str, Any]:
        """Tell all that determines the rationales, but for the budget: JSON. Vectors are kept under it."""

    def think(self, inputs: Iterable[dict[str, Any]], max_tokens: int) -> Iterable[tuple[int, Thought | NoThought]]:
        """
        Think about inputs.

        Args:
            inputs: those of the parts `text`, `image`, `video` (lists) and `instruction` that each has. Read them as
                there is room: what comes next may still have to be looked at by the embedder.
            max_tokens: of one rationale.

        Yields:
            The number of an input, from 0 on, and its rationale; in any order, each input once.

        Raises:
            ValueError: if no input could succeed: a wrong key, a server that is away.
        """


class ThinkerError(InputError):
    """
    Report an input without a rationale.

    Attributes:
        key: the input's content key, which travels between processes, where places in a call do not.
    """

    key: bytes | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.index, self.reason), {"key": self.key}

    def at(self, index: int) -> ThinkerError:
        """Make the same error for another position."""
        error = type(self)(index, self.fault if self.value is not None else self.reason, self.value)
        error.key = self.key
        return error


def load_thinker(thinker: Any) -> Thinker:
    """
    Find a thinker.

    Args:
        thinker: the path of a YAML file, which holds the keys of one worker as a pool file does (docs/rationales.md);
            a dict of these keys; `module:name`, an object of your own, or a class or function that makes it when it is
            called without arguments; or the object itself.

    Raises:
        ValueError: if there is none, or it is not what a thinker has to be.
    """
    if isinstance(thinker, str | os.PathLike):
        thinker = _named(thinker)
    if isinstance(thinker, Mapping):
        thinker = import_object(OF_WORKER)(thinker)
    if not callable(getattr(thinker, "think", None)) or not hasattr(thinker, "definition"):
        raise ValueError(f"thinker is {thinker!r:.80}; allowed: {SPECIFICATION}.")
    try:
        json.dumps(thinker.definition)
    except TypeError as error:
        raise ValueError(
            f"The thinker's definition is {thinker.definition!r:.80}, which JSON can't hold ({error}); make it a dict "
            "of strings, numbers and lists that says all that determines the rationales."
        ) from error
    return thinker


def _named(name: str | os.PathLike[str]) -> Any:
    """Read the file, or import the object, that a name stands for."""
    path = Path(name).expanduser()
    if path.is_file():
        keys = read_yaml(path)
        if not isinstance(keys, Mapping):
            raise ValueError(
                f"{path}: it holds {type(keys).__name__}; allowed: the keys of one worker (kind, model, ...)."
            )
        try:
            return import_object(OF_WORKER)(keys)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if ":" not in str(name):
        raise ValueError(f"thinker {str(name)!r}: there is no such file; allowed: {SPECIFICATION}.")
    found = import_object(str(name))
    is_maker = isinstance(found, type) or not hasattr(found, "think")
    return found() if is_maker and callable(found) else found


def thinker_input(value: Any, media: MediaOptions, prompt: str | None = None) -> dict[str, Any]:
    """
    Make of an input of `encode` what a thinker is asked: one turn.

    Args:
        value: the input. Of a chat of several turns each text begins with its role.
        media: whether it may name web addresses; what is there is downloaded here.
        prompt: the instruction, if the input brings none itself.

    Returns:
        Those that it has of `text`, `image` and `video` (lists of sources, of which files are not opened), and
        `instruction`.

    >>> thinker_input({"text": "Which city?", "image": "lima.png"}, MediaOptions(), "Name it.")
    {'text': 'Which city?', 'image': ['lima.png'], 'instruction': 'Name it.'}
    """
    messages = parse_input(value, media, prompt)
    turns = [turn for turn in messages if turn["role"] != "system"]
    instructions = [_text(turn) for turn in messages if turn["role"] == "system"]
    texts = [_text(turn) if len(turns) == 1 else f"{turn['role']}: {_text(turn)}" for turn in turns]
    parts = [part for turn in turns for part in turn["content"]]
    found = {
        "text": "\n".join(texts),
        "image": [_here("image", part["image"], media) for part in parts if part["type"] == "image"],
        "video": [_here("video", part["video"], media) for part in parts if part["type"] == "video"],
        "instruction": "\n".join(instructions),
    }
    return {name: part for name, part in found.items() if part}


def _text(turn: Mapping[str, Any]) -> str:
    return "\n".join(part["text"] for part in turn["content"] if part["type"] == "text")


def _here(kind: str, source: Any, media: MediaOptions) -> Any:
    """Download what is on the web; all else stays as it is."""
    if not isinstance(source, str) or parse_address(source).place != "web":
        return source
    if kind == "image":
        return open_image(source, media)
    frames, metadata = open_video(source, media)
    return {"array": frames, "video_metadata": metadata}
