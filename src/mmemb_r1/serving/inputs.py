"""
Turn what clients send into inputs of the model. A client names no file of the server: strings are text, and a picture
is a data URL, base64, or a web address where that is allowed.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmemb_r1.modeling.inputs_mmemb_r1 import PARTS, ROLES
from mmemb_r1.modeling.media_mmemb_r1 import MediumError, parse_address, read_source
from mmemb_r1.serving.errors import ApiError
from mmemb_r1.serving.protocol import EmbeddingRequest
from mmemb_r1.serving.settings import ServerSettings

MEDIA = ("image", "video")
URL_PARTS = {"image_url": "image", "video_url": "video"}  # of chats, as OpenAI's and vLLM's clients write them
ALLOWED = (
    "a string, an object with any of the keys text, image, video and instruction, or a list of chat messages, objects "
    "with role and content"
)


@dataclass(frozen=True)
class ReadInput:
    """Hold one input as the model takes it, and whether it has pictures or videos."""

    value: Any
    has_media: bool


class _Refused(ValueError):
    """Say what is wrong with an input."""


def read_inputs(request: EmbeddingRequest, settings: ServerSettings) -> list[ReadInput]:
    """
    Read the inputs of a request.

    Raises:
        ApiError: 400, naming the index of the input that can't be used.
    """
    if (request.input is None) == (request.messages is None):
        what = "both input and messages" if request.input is not None else "neither input nor messages"
        raise ApiError(400, f"The request has {what}; send one of the two.", param="input", code="invalid_value")
    if request.messages is not None:
        return [_read(0, request.messages, settings, "messages")]
    values = _listed(request.input)
    if not 0 < len(values) <= settings.max_inputs:
        raise ApiError(
            400,
            f"input has {len(values)} inputs; allowed: from 1 to {settings.max_inputs}. Send the others in further "
            "requests.",
            param="input",
            code="too_many_inputs" if values else "invalid_value",
        )
    return [_read(index, value, settings, "input") for index, value in enumerate(values)]


def _listed(given: Any) -> list[Any]:
    """List inputs: a string or an object is one, and so is a list of chat messages."""
    if not isinstance(given, list):
        return [given]
    if given and all(type(item) is int or (isinstance(item, list) and _are_ids(item)) for item in given):
        raise ApiError(
            400,
            "input holds token ids; this server takes text. Send strings: which ids a text has depends on the model's "
            "tokenizer. In LangChain's OpenAIEmbeddings, set check_embedding_ctx_length=False.",
            param="input",
            code="token_ids",
        )
    return [given] if given and all(_is_message(item) for item in given) else given


def _are_ids(items: list[Any]) -> bool:
    return bool(items) and all(type(item) is int for item in items)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and "role" in value


def _read(index: int, value: Any, settings: ServerSettings, param: str) -> ReadInput:
    reader = _Reader(settings)
    try:
        return ReadInput(reader.read(value), reader.media > 0)
    except (_Refused, MediumError) as error:
        raise ApiError(
            400, f"Input {index} can't be embedded: {error}", param=f"{param}[{index}]", code="invalid_input"
        ) from error


class _Reader:
    """Read one input, and count what it holds."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.media = self.characters = 0

    def read(self, value: Any) -> Any:
        if isinstance(value, str):
            return {"text": self._text(value)}
        if _is_message(value):
            value = [value]
        if isinstance(value, list) and value and all(_is_message(item) for item in value):
            return [self._message(item) for item in value]
        if not isinstance(value, dict):
            raise _Refused(f"it is {_kind(value)}; allowed: {ALLOWED}.")
        if unknown := [key for key in value if key not in PARTS]:
            raise _Refused(f"it has the unknown key {unknown[0]!r:.80}; allowed keys: {', '.join(PARTS)}.")
        readers: dict[str, Callable[[Any], Any]] = {"image": self._images, "video": self._videos}
        read = {
            key: readers.get(key, self._texts)(given)
            for key, given in value.items()
            if given is not None and given != []
        }
        if not read:
            raise _Refused("it is empty. Send some text, an image or a video.")
        return read

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        if unknown := [key for key in message if key not in ("role", "content")]:
            raise _Refused(f"a message has the key {unknown[0]!r:.80}, which is not used; allowed: role and content.")
        role, content = message["role"], message.get("content")
        if role not in ROLES:
            raise _Refused(f"a message has the role {role!r:.80}; allowed: {', '.join(ROLES)}.")
        if isinstance(content, str):
            return {"role": role, "content": self._text(content)}
        if not isinstance(content, list):
            raise _Refused(f"a message's content is {_kind(content)}; allowed: a string or a list of parts.")
        return {"role": role, "content": [self._part(part) for part in content]}

    def _part(self, part: Any) -> dict[str, Any]:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in ("text", *MEDIA, *URL_PARTS) or kind not in part:
            raise _Refused(
                'a message has a part that is not known; allowed: {"type": "text", "text": ...}, {"type": '
                '"image_url", "image_url": {"url": ...}}, {"type": "video_url", "video_url": {"url": ...}}.'
            )
        if unknown := [key for key in part if key not in ("type", kind)]:
            raise _Refused(f"a part of the type {kind!r} has the key {unknown[0]!r:.80}, which is not used.")
        if kind == "text":
            return {"type": "text", "text": self._text(part["text"])}
        given = part[kind]
        if kind in URL_PARTS and isinstance(given, dict):
            if given.get("detail") not in (None, "auto") or set(given) - {"url", "detail"} or "url" not in given:
                raise _Refused(
                    f'{kind} may have a url, and no detail but "auto": the server says how large media are.'
                )
            given = given["url"]
        kind = URL_PARTS.get(kind, kind)
        return {"type": kind, kind: self._medium(given, kind)}

    def _texts(self, given: Any) -> Any:
        return [self._text(item) for item in given] if isinstance(given, list) else self._text(given)

    def _text(self, given: Any) -> str:
        if not isinstance(given, str):
            raise _Refused(f"its text is {_kind(given)}; allowed: a string.")
        self.characters += len(given)
        if self.characters > self.settings.max_characters:
            raise _Refused(
                f"its text has more than {self.settings.max_characters} characters, which this server allows. Cut it, "
                "or send its parts as inputs of their own."
            )
        return given

    def _images(self, given: Any) -> Any:
        return [self._medium(item, "image") for item in given] if isinstance(given, list) else self._medium(given)

    def _videos(self, given: Any) -> Any:
        """Read a video, a list of its frames, or a list of videos."""
        if not isinstance(given, list):
            return self._medium(given, "video")
        if {parse_address(item).kind if isinstance(item, str) else None for item in given} != {"image"}:
            return [self._medium(item, "video") for item in given]
        frames = [self._medium(item, "image") for item in given]
        return [{"bytes": frame, "path": None} if isinstance(frame, bytes) else frame for frame in frames]

    def _medium(self, given: Any, kind: str = "image") -> Any:
        """Take a picture or video as the bytes of its file, or as an address where that is allowed."""
        self.media += 1
        if self.media > self.settings.max_media:
            raise _Refused(
                f"it has more than {self.settings.max_media} pictures and videos, which this server allows."
            )
        if not isinstance(given, str):
            raise _Refused(f"its {kind} is {_kind(given)}; allowed: a data URL, or base64.")
        place = parse_address(given).place
        if place == "data":
            return read_source(given, kind)
        if place == "web":
            if self.settings.allow_remote_media:
                return given
            raise _Refused(
                f"its {kind} is a web address, and this server downloads nothing. Send a data URL "
                f"(data:{kind}/...;base64,...)."
            )
        try:
            return base64.b64decode(given, validate=True)
        except (binascii.Error, ValueError) as error:
            raise _Refused(
                f"its {kind} is neither a data URL (data:{kind}/...;base64,...) nor base64; names of files are not "
                "taken."
            ) from error


def _kind(value: Any) -> str:
    names: Sequence[tuple[type, str]] = ((bool, "a truth value"), (int, "a number"), (float, "a number"))
    names = (*names, (list, "a list"), (dict, "an object"), (str, "a string"))
    return "null" if value is None else next(name for kind, name in names if isinstance(value, kind))
