"""Translate requests for a chat completions endpoint, and its answers to rationales; without a connection."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mmemb_r1.modeling.media_mmemb_r1 import parse_address, stored_source
from mmemb_r1.servers import data_url, encoded_url
from mmemb_r1.training.rationales.prompting import Style, parse_rationale, request_conversation, why_empty
from mmemb_r1.training.rationales.worker import Failure, Rationale, RationaleRequest

IMAGE_FORMATS = ("png", "jpeg")
_BYTES_PER_TOKEN = 4
_EXIF_ORIENTATION = 0x0112


def chat_messages(
    style: Style, request: RationaleRequest, num_video_frames: int = 8, image_format: str = "png"
) -> list[dict[str, Any]]:
    """
    Make the `messages` of a request.

    Pictures become data URLs: the file as it is if a server reads the same pixels from it as we do (an upright, opaque
    RGB or grey PNG, JPEG or WebP), else the opened picture, encoded again. A video becomes a sequence of pictures, its
    frames. A turn without pictures is a plain string, which every server accepts.

    Args:
        style: how to ask.
        request: the input to ask about.
        num_video_frames: frames that are sampled evenly from a video file.
        image_format: one of `IMAGE_FORMATS`, for pictures that have to be encoded.

    Raises:
        InputError: if the input can't be used; its `reason` says why.
    """
    system, user = request_conversation(style, request, num_video_frames)
    sources = iter(_as_list(request.input.get("image")))
    parts: list[dict[str, Any]] = []
    for part in user["content"]:
        if part["type"] == "text":
            parts.append(part)
        elif part["type"] == "image":
            parts.append(_image_part(_verbatim_url(next(sources)) or encoded_url(part["image"], image_format)))
        else:
            frames = [Image.fromarray(frame) for frame in part["video"]]
            parts.append({"type": "text", "text": f"A video, as {len(frames)} frames in order:"})
            parts += [_image_part(encoded_url(frame, image_format)) for frame in frames]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    return [
        {"role": "system", "content": system["content"][0]["text"]},
        {"role": "user", "content": "".join(texts) if len(texts) == len(parts) else parts},
    ]


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _verbatim_url(source: Any) -> str | None:
    """Return a picture's file as a data URL if every reader sees the same pixels in it, else `None`."""
    data = _file_bytes(source)
    if data is None:
        return None
    with Image.open(io.BytesIO(data)) as image:
        plain = (
            image.format in ("PNG", "JPEG", "WEBP")
            and image.mode in ("RGB", "L")
            and not image.has_transparency_data
            and getattr(image, "n_frames", 1) == 1
            and image.getexif().get(_EXIF_ORIENTATION, 1) == 1
        )
        return data_url(data, image.format or "") if plain else None


def _file_bytes(source: Any) -> bytes | None:
    source = stored_source(source)
    if isinstance(source, str | Path) and parse_address(str(source)).place == "path":
        try:
            return Path(os.path.expanduser(source)).read_bytes()
        except OSError:  # the picture was opened a moment ago: it is encoded instead
            return None
    return bytes(source) if isinstance(source, bytes | bytearray) else None


def has_media(messages: list[dict[str, Any]]) -> bool:
    """Tell whether messages hold a picture, which makes them long to send.

    >>> has_media([{"role": "user", "content": "Lima"}])
    False
    """
    return any(isinstance(message["content"], list) for message in messages)


def read_completions(completion: Any, style: Style) -> list[Rationale | Failure]:
    """
    Find the rationales in a chat completion, one in each of its choices.

    Reasoning is taken from `reasoning_content` or `reasoning`, where servers put it that separate it from the answer,
    else from between the tags in `content`. Its length is the server's `reasoning_tokens` where they are given, else
    all `completion_tokens` (those of the answer after it included), else estimated as one token for four bytes. Of
    several choices the server counts all tokens together: each gets a share by its length in bytes.

    Raises:
        ValueError: if `completion`, the parsed JSON of an answer, is no chat completion.
    """
    if not isinstance(completion, Mapping) or not isinstance(completion.get("choices"), list):
        if isinstance(completion, Mapping) and completion.get("error"):  # some gateways say 200 and then this
            return [Failure(f"the server answered with an error: {error_message(completion)}")]
        raise ValueError("it has no `choices`")
    if not completion["choices"]:
        return [Failure("the answer has no choices; some servers say so when they refuse.")]
    choices = [choice if isinstance(choice, Mapping) else {} for choice in completion["choices"]]
    if not all(isinstance(choice.get("message"), Mapping) for choice in choices):
        raise ValueError("one of its choices has no `message`")
    choices.sort(key=_index)
    sizes = [len("".join(_texts(choice)).encode(errors="replace")) for choice in choices]
    shares = [size / max(1, sum(sizes)) for size in sizes] if len(choices) > 1 else [1.0]
    return [_read_choice(choice, completion, style, share) for choice, share in zip(choices, shares, strict=True)]


def _index(choice: Mapping[str, Any]) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else 0


def _texts(choice: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a choice says: its content, and the reasoning that the server separated from it."""
    message = choice["message"]
    return (
        _content_text(message.get("content")),
        _content_text(message.get("reasoning_content") or message.get("reasoning")),
    )


def _read_choice(
    choice: Mapping[str, Any], completion: Mapping[str, Any], style: Style, share: float
) -> Rationale | Failure:
    message, finish_reason = choice["message"], choice.get("finish_reason")
    content, reasoning = _texts(choice)
    if finish_reason == "content_filter" or message.get("refusal"):
        return Failure(f"the server refused: {message.get('refusal') or 'its content filter cut the answer.'}")
    text = parse_rationale(reasoning if style.thinking and reasoning else content, style)
    if not text:
        return Failure(why_empty(style, reasoning or content, finish_reason))
    num_tokens = _num_tokens(completion, style, text, share)
    return Rationale(text, num_tokens, "length" if finish_reason == "length" else "stop")


def _content_text(content: Any) -> str:
    """Join the text of a content, which some servers send in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def _num_tokens(completion: Mapping[str, Any], style: Style, text: str, share: float) -> int:
    usage = completion.get("usage") or {}
    total = usage.get("completion_tokens")
    if not isinstance(total, int):
        return -(-len(text.encode(errors="replace")) // _BYTES_PER_TOKEN)  # it may end in half a character
    details = usage.get("completion_tokens_details") or {}
    reasoning = details.get("reasoning_tokens") or usage.get("reasoning_tokens")
    if not isinstance(reasoning, int) or not 0 < reasoning <= total:
        return max(1, round(total * share))
    return max(1, round((reasoning if style.thinking else total - reasoning) * share))


def error_message(body: Any, limit: int = 300) -> str:
    """
    Find a server's message in the body of an error, and put it on one line.

    >>> error_message({"error": {"message": "No such model.", "code": 404}})
    'No such model.'
    >>> error_message({"detail": "Unexpected fields"})
    'Unexpected fields'
    """
    while isinstance(body, Mapping) and (inner := next((body[key] for key in _MESSAGE_KEYS if body.get(key)), None)):
        body = inner
    return " ".join(str(body).split())[:limit]


_MESSAGE_KEYS = ("error", "message", "detail")
