"""Read what users pass (text, pictures, videos, any mix) as chat messages. Bad input is an error, not a guess."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .media_mmemb_r1 import (
    DEFAULTS,
    SUFFIXES,
    MediaOptions,
    find_file,
    image_formats,
    is_array,
    open_image,
    parse_address,
)
from .videos_mmemb_r1 import open_video

PARTS = ("text", "image", "video", "instruction")
ROLES = ("system", "user", "assistant")
VIDEO_PARTS = ("array", "video_metadata")  # of a video in memory
_VIDEO_SUFFIXES = tuple(SUFFIXES["video"].split())
_ALSO_CODE = (".ts", ".mts")  # a name that ends so is a film's only where there is such a file
_ALLOWED = (
    "a string, a PIL image, an array, a dict with any of the keys 'text', 'image', 'video' and 'instruction', or a "
    "list of chat messages"
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
        return type(self)(index, self.fault if self.value is not None else self.reason, self.value)


def parse_input(value: Any, media: MediaOptions = DEFAULTS, instruction: str | None = None) -> list[dict[str, Any]]:
    """
    Read one input as chat messages, whose pictures and videos are not opened yet.

    This is the one place that knows what an input looks like: its content key, its length and its conversation are
    made of what it returns. Messages that it returned are an input, too, which it returns as it is.

    Args:
        value: a string, a picture or video in memory, a dict with any of `text`, `image`, `video`, `instruction`
            (lists for several), or chat messages. What each of them may be: docs/inputs.md.
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
        own = fields.get("instruction")
        instruction = own if own is not None and _text(own).strip() else instruction
    if instruction is None or not _text(instruction).strip() or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": [_part("text", instruction)]}, *messages]


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
    if _is_blank(parts):
        raise ValueError("it is empty. Pass some text, an image or a video.")


def _is_blank(content: list[dict[str, Any]]) -> bool:
    texts = [part["text"] for part in content if part["type"] == "text"]
    return len(texts) == len(content) and not any(text.strip() or isinstance(text, EmptyText) for text in texts)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"its text is of type {type(value).__name__}; allowed: a string.")
    value.encode()  # half a character (a lone surrogate) is a ValueError here, and nothing a tokenizer knows
    return value


def _fields(value: Any, media: MediaOptions) -> Mapping[str, Any]:
    """Read one input that is no chat as a dict."""
    if isinstance(value, str):
        return _string_field(value, media)
    if is_array(value):
        return {"video" if value.ndim == 4 else "image": value}
    if isinstance(value, Image.Image | bytes | bytearray | io.IOBase):
        return {"image": value}
    if hasattr(value, "get_frames_at") or (isinstance(value, Mapping) and value and set(value) <= set(VIDEO_PARTS)):
        return {"video": value}  # a decoder, or frames with their metadata
    if not isinstance(value, Mapping):
        raise ValueError(f"it is of type {type(value).__name__}; allowed: {_ALLOWED}.")
    if unknown := [key for key in value if key not in PARTS]:
        raise ValueError(f"it has the unknown key {unknown[0]!r}; allowed keys: {', '.join(PARTS)}.")
    return value


def _string_field(value: str, media: MediaOptions) -> dict[str, Any]:
    """Read a bare string as text, unless it plainly names a picture or a video."""
    place, kind, target = parse_address(value)
    if kind is None:
        return {"text": value}
    exists = place == "path" and find_file(value) is not None
    if kind == "unsupported" and (exists or place == "data"):
        what = "is a file of a kind" if exists else "is a data URL of something"
        raise ValueError(
            f"{value!r:.200} {what} that is not embedded. Make it a picture ({', '.join(image_formats())}) or a "
            'video, say what it is with {"image": ...} or {"video": ...}, or pass {"text": ...} to embed the string '
            "itself."
        )
    if kind != "unsupported" and (exists or place == "data" or (place == "web" and media.allow_remote)):
        return {kind: value}
    if kind == "unsupported" or target.lower().endswith(_ALSO_CODE):
        return {"text": value}
    if re.fullmatch(r"\S+", target) or re.match(r"~?/|\.\.?/|[A-Za-z]:\\", target):
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
        return set(value) == {"bytes", "path"} and not str(value["path"] or "").endswith(_VIDEO_SUFFIXES)
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
        _refuse_unknown(message, "a message", ("role", "content"))
        role, content = message["role"], message["content"]
        if role not in ROLES:  # templates write it into the prompt as it is
            raise ValueError(f"a message has the role {role!r:.80}; allowed: {', '.join(ROLES)}.")
        parts = [_part("text", content)] if isinstance(content, str) else content
        if not isinstance(parts, list | tuple):
            raise ValueError(
                f"a message's content is of type {type(parts).__name__}; allowed: a string or a list of parts."
            )
        content = [_parsed_part(part) for part in parts]
        if role != "system" or not _is_blank(content):  # a blank instruction is none
            parsed.append({"role": role, "content": content})
    _require_content([part for turn in parsed if turn["role"] != "system" for part in turn["content"]])
    return parsed


def _refuse_unknown(value: Mapping[str, Any], name: str, allowed: Sequence[str]) -> None:
    """Refuse what would be dropped. A key without a value is fine: tables give every row the keys of all."""
    unknown = [key for key, given in value.items() if key not in allowed and given is not None]
    if unknown:
        raise ValueError(
            f"{name} has the key {unknown[0]!r:.80}, which is not used; allowed: {', '.join(allowed)}. An instruction "
            "is a turn of the role 'system'; sizes and numbers of frames are set in the config and the processor."
        )


def _parsed_part(part: Any) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("text", "image", "video") or kind not in part:
        raise ValueError(
            f"a message holds {part!r:.80}; allowed: {{'type': 'text', 'text': ...}} and likewise for 'image' and "
            "'video'."
        )
    _refuse_unknown(part, f"a part of the type {kind!r}", ("type", kind))
    return _part(kind, _text(part["text"]) if kind == "text" else part[kind])
