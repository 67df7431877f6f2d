"""Requests -> what a chat completions endpoint takes, its answers -> rationales. Nothing here talks to a server."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mmemb_r1.modeling.media_mmemb_r1 import parse_address, stored_source
from mmemb_r1.training.rationales.prompting import Style, parse_rationale, request_conversation
from mmemb_r1.training.rationales.worker import Failure, Rationale, RationaleRequest

IMAGE_FORMATS = ("png", "jpeg")
_BYTES_PER_TOKEN = 4
_EXIF_ORIENTATION = 0x0112


def chat_messages(
    style: Style, request: RationaleRequest, num_video_frames: int = 8, image_format: str = "png"
) -> list[dict[str, Any]]:
    """
    The `messages` of a request.

    Pictures become data URLs: the file itself if a server reads the same pixels from it as we do (an upright, opaque
    RGB or grey PNG, JPEG or WebP), else what was opened, encoded anew. A video becomes its frames, as pictures in a
    row. A turn without pictures is a plain string, which every server takes.

    Args:
        style: how to ask.
        request: what is asked about.
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
            parts.append(_image_part(_verbatim_url(next(sources)) or _encoded_url(part["image"], image_format)))
        else:
            frames = [Image.fromarray(frame) for frame in part["video"]]
            parts.append({"type": "text", "text": f"A video, as {len(frames)} frames in order:"})
            parts += [_image_part(_encoded_url(frame, image_format)) for frame in frames]
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


def _encoded_url(image: Image.Image, image_format: str) -> str:
    file = io.BytesIO()
    image.save(file, format=image_format, quality=95)
    return _data_url(file.getvalue(), image_format)


def _data_url(data: bytes, image_format: str) -> str:
    return f"data:image/{image_format.lower()};base64,{base64.b64encode(data).decode()}"


def _verbatim_url(source: Any) -> str | None:
    """The data URL of a picture's file as it is, if all that read it agree on its pixels."""
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
        return _data_url(data, image.format or "") if plain else None


def _file_bytes(source: Any) -> bytes | None:
    source = stored_source(source)
    if isinstance(source, str | Path) and parse_address(str(source)).place == "path":
        try:
            return Path(os.path.expanduser(source)).read_bytes()
        except OSError:  # it was opened a moment ago, so there is something to encode
            return None
    return bytes(source) if isinstance(source, bytes | bytearray) else None


def read_completion(completion: Any, style: Style) -> Rationale | Failure:
    """
    The rationale in a chat completion.

    A thought is taken from `reasoning_content` or `reasoning`, where servers that part it from the answer put it, else
    from the tags in `content`. What counts as its length: the server's `reasoning_tokens` for a thought, where they
    are told, else its `completion_tokens` (a thought's then include those of the answer after it), else an estimate of
    one token for four bytes.

    Args:
        completion: the parsed JSON of an answer.
        style: how was asked.

    Returns:
        A `Failure` if it holds no rationale.

    Raises:
        ValueError: if it is no chat completion.
    """
    if not isinstance(completion, Mapping) or not isinstance(completion.get("choices"), list):
        if isinstance(completion, Mapping) and completion.get("error"):  # some gateways say 200 and then this
            return Failure(f"the server answered with an error: {error_message(completion)}")
        raise ValueError("it has no `choices`")
    if not completion["choices"]:
        return Failure("the answer has no choices; some servers say so when they refuse.")
    choice = completion["choices"][0]
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        raise ValueError("its first choice has no `message`")
    finish_reason = choice.get("finish_reason")
    content = _content_text(message.get("content"))
    reasoning = _content_text(message.get("reasoning_content") or message.get("reasoning"))
    if finish_reason == "content_filter" or message.get("refusal"):
        return Failure(f"the server refused: {message.get('refusal') or 'its content filter cut the answer.'}")
    text = parse_rationale(reasoning if style.thinking and reasoning else content, style)
    if not text:
        return Failure(_why_empty(style, finish_reason, bool(reasoning or content)))
    return Rationale(text, _num_tokens(completion, style, text), "length" if finish_reason == "length" else "stop")


def _content_text(content: Any) -> str:
    """Some servers answer in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def _why_empty(style: Style, finish_reason: Any, said_something: bool) -> str:
    if not said_something:
        return f"the answer is empty (finish_reason {finish_reason!r})."
    if style.thinking:
        return f"the answer has an empty thought (finish_reason {finish_reason!r}); is thinking on in this model?"
    return (
        f"the answer is a thought and nothing else (finish_reason {finish_reason!r}); raise `max_tokens`, or use a "
        "style that takes the thought."
    )


def _num_tokens(completion: Mapping[str, Any], style: Style, text: str) -> int:
    usage = completion.get("usage") or {}
    total = usage.get("completion_tokens")
    if not isinstance(total, int):
        return -(-len(text.encode(errors="replace")) // _BYTES_PER_TOKEN)  # it may end in half a character
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or usage.get("reasoning_tokens")
    if not isinstance(thought, int) or not 0 < thought <= total:
        return total
    return thought if style.thinking else total - thought


def error_message(body: Any, limit: int = 300) -> str:
    """
    What a server says in the body of an error, on one line.

    >>> error_message({"error": {"message": "No such model.", "code": 404}})
    'No such model.'
    >>> error_message({"detail": "Unexpected fields"})
    'Unexpected fields'
    """
    while isinstance(body, Mapping) and (inner := next((body[key] for key in _MESSAGE_KEYS if body.get(key)), None)):
        body = inner
    return " ".join(str(body).split())[:limit]


_MESSAGE_KEYS = ("error", "message", "detail")
