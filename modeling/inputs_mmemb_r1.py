"""Read what users pass (text, pictures, videos, any mix) as chat messages. Bad input is an error, not a guess."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .media_mmemb_r1 import DEFAULTS, MediaOptions, is_file, open_image, open_video, parse_address

PARTS = ("text", "image", "video", "instruction")
ROLES = ("system", "user", "assistant")
_ALLOWED = (
    "a string, a PIL image, a dict with any of the keys 'text', 'image', 'video' and 'instruction', or a list of chat "
    "messages"
)


class EmptyText(str):
    """Say that a text is meant to be empty: `{"text": EmptyText()}` is an empty turn; other blank texts are errors."""


class InputError(ValueError):
    """
    Report an input that can't be embedded.

    Attributes:
        index: position of the input among those passed.
        fault: what is wrong, what is allowed and what to do.
        reason: the same, and the beginning of the input itself.
        value: the input itself, where it is known; it does not travel between processes.
    """

    def __init__(self, index: int, reason: str, value: Any = None) -> None:
        self.index, self.fault, self.value = index, reason, value
        if value is not None:  # without addresses in memory: the same input gives the same message
            reason += f" It was: {re.sub(' at 0x[0-9a-fA-F]+', '', repr(value)):.100}"
        self.reason = reason
        super().__init__(f"Input {index} can't be embedded: {self.reason}")

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return type(self), (self.index, self.reason)

    def at(self, index: int) -> InputError:
        """Make the same error for another position."""
        return type(self)(index, self.reason)


def parse_input(value: Any, media: MediaOptions = DEFAULTS, instruction: str | None = None) -> list[dict[str, Any]]:
    """
    Read one input as chat messages, whose pictures and videos are not opened yet.

    This is the one place that knows what an input looks like: its content key, its length and its conversation are
    made of what it returns. Messages that it returned are an input, too, which it returns as it is.

    Args:
        value: a string, a PIL image, a dict with any of `text`, `image`, `video`, `instruction` (lists for several),
            or chat messages.
        media: whether a string may be a web address.
        instruction: the system turn, if the input brings none itself.

    Returns:
        Messages `{"role", "content"}`, each content a list of `{"type": kind, kind: source}` with the kinds `"text"`,
        `"image"` and `"video"`.

    Raises:
        ValueError: saying what is wrong with the input.
    """
    if isinstance(value, Mapping) and "role" in value:
        value = [value]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        messages = _parsed_messages(value)
        _require_content([part for message in messages if message["role"] != "system" for part in message["content"]])
    else:
        fields = _fields(value, media)
        content = [_part("image", image) for image in _as_list(fields.get("image"))]
        content += [_part("video", video) for video in _as_videos(fields.get("video"))]
        if text := "\n".join(text for text in map(_text, _as_list(fields.get("text"))) if text.strip()):
            content.append(_part("text", text))
        elif isinstance(fields.get("text"), EmptyText):
            content.append(_part("text", fields["text"]))
        _require_content(content)
        messages = [{"role": "user", "content": content}]
        instruction = fields.get("instruction") or instruction
    if not instruction or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": [_part("text", _text(instruction))]}, *messages]


def to_conversations(
    inputs: Sequence[Any], instruction: str | None = None, media: MediaOptions = DEFAULTS
) -> list[list[dict[str, Any]]]:
    """
    Make inputs chat conversations with opened media, one per input and in the same order.

    Args:
        inputs: see [`parse_input`].
        instruction: the system turn of every input that brings none itself.
        media: how pictures and videos are opened.

    Raises:
        InputError: naming the index of the input that can't be used.
    """
    conversations = []
    for index, value in enumerate(inputs):
        try:
            messages = parse_input(value, media, instruction)
            conversations.append(
                [{**turn, "content": [_opened(part, media) for part in turn["content"]]} for turn in messages]
            )
        except (ValueError, OSError) as error:  # OSError: a file that may not be read
            raise InputError(index, str(error), value) from error
    return conversations


def _opened(part: dict[str, Any], media: MediaOptions) -> dict[str, Any]:
    if part["type"] == "image":
        return _part("image", open_image(part["image"], media))
    if part["type"] == "video":
        frames, metadata = open_video(part["video"], media)
        return {**_part("video", frames), "metadata": metadata}
    return part


def _part(kind: str, source: Any) -> dict[str, Any]:
    return {"type": kind, kind: source}


def _require_content(parts: list[dict[str, Any]]) -> None:
    if not any(
        part["type"] != "text" or part["text"].strip() or isinstance(part["text"], EmptyText) for part in parts
    ):
        raise ValueError("it is empty. Pass some text, an image or a video.")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"its text is of type {type(value).__name__}; allowed: a string.")
    value.encode()  # half a character (a lone surrogate) is a ValueError here, and nothing a tokenizer knows
    return value


def _fields(value: Any, media: MediaOptions) -> Mapping[str, Any]:
    """Read one input that is no chat as a dict."""
    if isinstance(value, str):
        return _string_field(value, media)
    if isinstance(value, Image.Image | bytes | np.ndarray):
        return {"image": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"it is of type {type(value).__name__}; allowed: {_ALLOWED}.")
    if unknown := [key for key in value if key not in PARTS]:
        raise ValueError(f"it has the unknown key {unknown[0]!r}; allowed keys: {', '.join(PARTS)}.")
    return value


def _string_field(value: str, media: MediaOptions) -> dict[str, Any]:
    """Read a bare string as text, unless it plainly names a picture or a video."""
    place, kind = parse_address(value)
    if kind is None:
        return {"text": value}
    if place == "data" or is_file(value) or (place == "web" and media.allow_remote):
        return {kind: value}
    if re.fullmatch(r"\S+", value) or re.match(r"~?/|\.\.?/|[A-Za-z]:\\", value):
        raise ValueError(
            f"{value!r:.200} looks like the path of a file ({kind}), but there is no such file, and nothing "
            'is downloaded unless allow_remote_media=True. Correct the path, or pass {"text": ...} to embed the '
            "string itself."
        )
    return {"text": value}


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _as_videos(value: Any) -> list[Any]:
    """List videos: a list of frames is one, a list of anything else is several."""
    if isinstance(value, list | tuple) and value and all(map(_is_frame, value)):
        return [value]
    return _as_list(value)


def _is_frame(value: Any) -> bool:
    if isinstance(value, str | Path):
        return parse_address(str(value)).kind == "image"
    if isinstance(value, Mapping):  # an undecoded picture of `datasets`
        return set(value) == {"bytes", "path"}
    return isinstance(value, Image.Image) or getattr(value, "ndim", 0) in (2, 3)


def _parsed_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    if not messages:
        raise ValueError(f"it is an empty list; allowed: {_ALLOWED}.")
    parsed = []
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ValueError(
                f"it is a list that holds {type(message).__name__}; allowed in a list: chat messages, dicts with "
                "'role' and 'content'. Several inputs are passed as a list of inputs."
            )
        role, content = message["role"], message["content"]
        if role not in ROLES:  # templates write it into the prompt as it is
            raise ValueError(f"a message has the role {role!r:.80}; allowed: {', '.join(ROLES)}.")
        parts = [_part("text", content)] if isinstance(content, str) else content
        if not isinstance(parts, list | tuple):
            raise ValueError(
                f"a message's content is of type {type(parts).__name__}; allowed: a string or a list of parts."
            )
        parsed.append({"role": role, "content": [_parsed_part(part) for part in parts]})
    return parsed


def _parsed_part(part: Any) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("text", "image", "video") or kind not in part:
        raise ValueError(
            f"a message holds {part!r:.80}; allowed: {{'type': 'text', 'text': ...}} and likewise for 'image' and "
            "'video'."
        )
    return _part(kind, _text(part["text"]) if kind == "text" else part[kind])
