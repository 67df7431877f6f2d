"""What users pass (text, pictures, videos, any mix) -> the tensors of a batch. Bad input is an error, not a guess."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from jinja2 import TemplateError
from PIL import Image, ImageOps
from transformers import BatchFeature, ProcessorMixin

from .tokens_mmemb_r1 import as_plain_text, control_strings

KEYS = ("text", "image", "video", "instruction")
ROLES = ("system", "user", "assistant")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")
_ALLOWED = (
    "a string, a PIL image, a dict with any of the keys 'text', 'image', 'video' and 'instruction', or a list of chat "
    "messages"
)


class InputError(ValueError):
    """
    An input that can't be embedded.

    Attributes:
        index: position of the input among those passed.
        reason: what came, what is allowed and what to do.
        value: the input itself, where it is known; it does not travel between processes.
    """

    def __init__(self, index: int, reason: str, value: Any = None) -> None:
        super().__init__(f"Input {index} can't be embedded: {reason}")
        self.index = index
        self.reason = reason
        self.value = value

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return type(self), (self.index, self.reason)


def to_conversations(
    inputs: Sequence[Any], instruction: str | None = None, num_video_frames: int = 8
) -> list[list[dict[str, Any]]]:
    """
    Inputs -> chat conversations with opened media, one per input and in the same order.

    Args:
        inputs: strings, PIL images, dicts with any of `text`, `image`, `video`, `instruction` (lists for several), or
            chat messages.
        instruction: the system turn of every input that brings none itself.
        num_video_frames: frames that are sampled evenly from a video file.

    Raises:
        InputError: naming the index of the input that can't be used.
    """
    conversations = []
    for index, value in enumerate(inputs):
        try:
            conversations.append(_conversation(value, instruction, num_video_frames))
        except (ValueError, OSError) as error:  # OSError: a file that may not be read
            raise InputError(index, str(error)) from error
    return conversations


def _conversation(value: Any, instruction: str | None, num_frames: int) -> list[dict[str, Any]]:
    if isinstance(value, Mapping) and "role" in value:
        value = [value]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return _opened_messages(value, instruction, num_frames)
    fields = _fields(value)
    content: list[dict[str, Any]] = [{"type": "image", "image": open_image(image)} for image in fields["image"]]
    content += [_video_part(video, num_frames) for video in fields["video"]]
    if text := "\n".join(text for text in map(_text, fields["text"]) if text.strip()):
        content.append({"type": "text", "text": text})
    _require_content(content)
    return _with_system([{"role": "user", "content": content}], fields["instruction"] or instruction)


def _with_system(messages: list[dict[str, Any]], instruction: str | None) -> list[dict[str, Any]]:
    if not instruction or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": [{"type": "text", "text": _text(instruction)}]}, *messages]


def _require_content(parts: list[dict[str, Any]]) -> None:
    if not any(part["type"] != "text" or part["text"].strip() for part in parts):
        raise ValueError("it is empty. Pass some text, an image or a video.")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"its text is of type {type(value).__name__}; allowed: a string.")
    value.encode()  # half a character (a lone surrogate) is a ValueError here, and nothing a tokenizer knows
    return value


def _fields(value: Any) -> dict[str, Any]:
    """One input as lists of its parts."""
    if isinstance(value, str):
        value = _string_field(value)
    elif isinstance(value, Image.Image | bytes | np.ndarray):
        value = {"image": value}
    elif not isinstance(value, Mapping):
        raise ValueError(f"it is of type {type(value).__name__}; allowed: {_ALLOWED}.")
    unknown = [key for key in value if key not in KEYS]
    if unknown:
        raise ValueError(f"it has the unknown key {unknown[0]!r}; allowed keys: {', '.join(KEYS)}.")
    fields = {key: _as_list(value.get(key)) for key in ("text", "image")}
    return {**fields, "video": _as_videos(value.get("video")), "instruction": value.get("instruction")}


def _string_field(value: str) -> dict[str, Any]:
    """A bare string is text, unless it plainly names a picture or a video."""
    for kind, suffixes in (("image", IMAGE_SUFFIXES), ("video", VIDEO_SUFFIXES)):
        if value.startswith(f"data:{kind}/"):
            return {kind: value}
        if value.lower().endswith(suffixes):
            if _is_file(value):
                return {kind: value}
            if re.fullmatch(r"\S+", value):
                raise ValueError(
                    f"{value!r:.200} looks like the path of a file ({kind}), but there is no such file, and nothing "
                    'is downloaded. Correct the path, or pass {"text": ...} to embed the string itself.'
                )
    return {"text": value}


def _is_file(path: str | os.PathLike[str]) -> bool:
    return os.path.isfile(os.path.expanduser(path))  # unlike Path.is_file, False for names no file system takes


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _as_videos(value: Any) -> list[Any]:
    """A list of frames is one video; a list of anything else is several."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [value] if value and all(map(_is_frame, value)) else list(value)
    return [value]


def _is_frame(value: Any) -> bool:
    if isinstance(value, str | Path):
        return str(value).lower().endswith(IMAGE_SUFFIXES)
    return isinstance(value, Image.Image) or getattr(value, "ndim", 0) in (2, 3)


def _opened_messages(messages: Sequence[Any], instruction: str | None, num_frames: int) -> list[dict[str, Any]]:
    """Chat messages with their media opened."""
    if not messages:
        raise ValueError(f"it is an empty list; allowed: {_ALLOWED}.")
    opened = []
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ValueError(
                f"it is a list that holds {type(message).__name__}; allowed in a list: chat messages, dicts with "
                "'role' and 'content'. Several inputs are passed as a list of inputs."
            )
        role, content = message["role"], message["content"]
        if role not in ROLES:  # templates write it into the prompt as it is
            raise ValueError(f"a message has the role {role!r:.80}; allowed: {', '.join(ROLES)}.")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list | tuple):
            raise ValueError(
                f"a message's content is of type {type(parts).__name__}; allowed: a string or a list of parts."
            )
        opened.append({"role": role, "content": [_opened_part(part, num_frames) for part in parts]})
    _require_content([part for message in opened if message["role"] != "system" for part in message["content"]])
    return _with_system(opened, instruction)


def _opened_part(part: Any, num_frames: int) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("text", "image", "video") or kind not in part:
        raise ValueError(
            f"a message holds {part!r:.80}; allowed: {{'type': 'text', 'text': ...}} and likewise for 'image' and "
            "'video'."
        )
    if kind == "text":
        return {"type": "text", "text": _text(part["text"])}
    return (
        _video_part(part["video"], num_frames)
        if kind == "video"
        else {"type": "image", "image": open_image(part[kind])}
    )


def open_image(source: Any) -> Image.Image:
    """
    Open a picture as RGB, upright (EXIF) and with transparency on white.

    Args:
        source: a PIL image, a path, the bytes of a file, a `data:` URL, an array `(H, W)` or `(H, W, 3 | 4)` of uint8,
            or the `{"bytes", "path"}` dict of an undecoded `datasets` image.

    Raises:
        ValueError: if there is no such file, it is no picture, or its pixels have no range (32-bit).
    """
    if isinstance(source, Mapping) and set(source) <= {"bytes", "path"}:
        source = source.get("bytes") or source.get("path")
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    data = None if isinstance(source, Image.Image) else _read(source, "image")
    try:
        image = source if data is None else Image.open(io.BytesIO(data))
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"its image {_name(source)} can't be read ({error}). Pass a picture that PIL can open."
        ) from error
    if 0 in image.size:
        raise ValueError(f"its image has no pixels (size {image.size}).")
    return _rgb(image)


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise ValueError(
            f"its image is an array of {pixels.dtype} with shape {pixels.shape}; allowed: uint8 with shape (H, W), "
            "(H, W, 3) or (H, W, 4)."
        )
    return Image.fromarray(pixels)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its image has 32-bit pixels (mode {image.mode}) of unknown range; convert it to 8 or 16 bits."
        )
    if image.mode.startswith("I;16"):  # PIL would clip these to the darkest 1/256 of their range
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _read(source: Any, kind: str) -> bytes:
    """The bytes of a file, of a `data:` URL, or just bytes."""
    if isinstance(source, bytes | bytearray):
        return bytes(source)
    if isinstance(source, str) and source.startswith("data:"):
        header, _, payload = source.partition(",")
        try:
            return (
                base64.b64decode(payload, validate=True) if header.endswith(";base64") else unquote_to_bytes(payload)
            )
        except binascii.Error as error:
            raise ValueError(f"its data URL {_name(source)} is not valid base64 ({error}).") from error
    if isinstance(source, str) and re.match(r"https?://", source):
        raise ValueError(
            f"{source!r} is a web address; nothing is downloaded. Download the {kind} and pass its path or bytes."
        )
    if not isinstance(source, str | Path):
        decoded = {"image": "a PIL image or array", "video": "a list of frames or an array"}[kind]
        raise ValueError(
            f"its {kind} is of type {type(source).__name__}; allowed: {decoded}, a path, bytes or a data URL."
        )
    if not _is_file(source):
        raise ValueError(f"there is no {kind} file {str(source)!r:.200}.")
    return Path(os.path.expanduser(source)).read_bytes()


def _name(source: Any) -> str:
    if isinstance(source, bytes | bytearray):
        return f"of {len(source)} bytes"
    return repr(str(source)[:60])


def _video_part(source: Any, num_frames: int) -> dict[str, Any]:
    frames, metadata = open_video(source, num_frames)
    return {"type": "video", "video": frames, "metadata": metadata}


def open_video(source: Any, num_frames: int = 8) -> tuple[np.ndarray, dict[str, Any]]:
    """
    Open a video as frames `(T, H, W, 3)` of uint8 and their metadata.

    Args:
        source: a path or the bytes of a file (decoded with PyAV, `num_frames` of its frames, evenly spread), or the
            frames themselves, as an array or a list of pictures: these are all kept.
        num_frames: frames to sample from a file.

    Raises:
        ValueError: if there is no such file, it is no video, or there are no frames.
    """
    if isinstance(source, np.ndarray) and source.ndim == 4:
        source = list(source)
    if isinstance(source, list | tuple):
        if not source:
            raise ValueError("its video has no frames.")
        frames = [np.asarray(open_image(frame)) for frame in source]
        if len({frame.shape for frame in frames}) > 1:
            raise ValueError("the frames of its video differ in size; resize them to one size.")
        return np.stack(frames), _metadata(len(frames), 24.0, range(len(frames)))
    return _decode_video(source, num_frames)


def _decode_video(source: Any, num_frames: int) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        import av
    except ImportError as error:
        raise ValueError("videos need PyAV: pip install av, or pass the frames as a list of pictures.") from error

    data = _read(source, "video")
    try:
        with av.open(io.BytesIO(data), "r") as container:
            rate = float(container.streams.video[0].average_rate or 24.0) if container.streams.video else 24.0
            # only as much as is sampled is kept as arrays: an hour of frames does not fit into memory
            total = sum(1 for _ in container.decode(video=0)) if container.streams.video else 0
        wanted = sorted(
            set(np.linspace(0, max(total - 1, 0), min(num_frames, max(total, 1))).round().astype(int).tolist())
        )
        with av.open(io.BytesIO(data), "r") as container:
            decoded = enumerate(container.decode(video=0)) if total else iter(())
            frames = [frame.to_ndarray(format="rgb24") for index, frame in decoded if index in wanted]
    except (av.FFmpegError, OSError) as error:
        raise ValueError(
            f"its video {_name(source)} can't be read ({error}). Pass a video that FFmpeg can open."
        ) from error
    if not frames:
        raise ValueError(f"its video {_name(source)} has no frames.")
    return np.stack(frames), _metadata(total, rate, wanted)


def _metadata(total: int, fps: float, indices: Sequence[int]) -> dict[str, Any]:
    return {"total_num_frames": total, "fps": fps, "duration": total / fps, "frames_indices": list(indices)}


def truncate_text(tokenizer: Any, text: str, max_tokens: int) -> str:
    """The longest beginning of `text` that has at most `max_tokens` tokens."""
    if len(text.encode()) <= max_tokens:  # a token is at least one byte
        return text
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    # a character may take several tokens: it is kept whole or not at all
    return text if len(offsets) <= max_tokens else text[: min(offsets[max_tokens - 1][1], offsets[max_tokens][0])]


def truncate_conversation(tokenizer: Any, conversation: list[dict[str, Any]], max_tokens: int) -> list[dict[str, Any]]:
    """
    Cut the text of all turns but the system's to `max_tokens` tokens in all, before anything is rendered: markers and
    media are never cut.
    """
    left = max_tokens
    messages = []
    for message in conversation:
        content = []
        for part in message["content"]:
            if part["type"] == "text" and message["role"] != "system":
                text = truncate_text(tokenizer, part["text"], left) if left > 0 else ""
                left -= len(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0
                part = {"type": "text", "text": text}
            content.append(part)
        messages.append({"role": message["role"], "content": content})
    return messages


def render(
    processor: ProcessorMixin, conversations: list[list[dict[str, Any]]], max_text_tokens: int | None = None
) -> BatchFeature:
    """
    Conversations -> the tensors of a batch, padded on the left, each prompt ending in `<|embed|>`.

    Control tokens inside the users' text are encoded as plain text. Encoding, training and reinforcement learning all
    come through here.

    Raises:
        InputError: naming the index of the conversation that the processor can't take.
        ValueError: if it takes each of them alone but not all together.
    """
    try:
        return _render(processor, conversations, max_text_tokens)
    except (ValueError, TemplateError) as error:
        for index, chat in enumerate(conversations):
            try:
                _render(processor, [chat], max_text_tokens)
            except (ValueError, TemplateError) as alone:
                raise InputError(index, str(alone)) from error
        raise


def _render(
    processor: ProcessorMixin, conversations: list[list[dict[str, Any]]], max_text_tokens: int | None
) -> BatchFeature:
    controls = control_strings(processor)
    conversations = [_with_plain_text(chat, controls) for chat in conversations]
    if max_text_tokens is not None:
        conversations = [truncate_conversation(processor.tokenizer, chat, max_text_tokens) for chat in conversations]
    parts = [part for chat in conversations for message in chat for part in message["content"]]
    options: dict[str, Any] = {"padding": True, "padding_side": "left"}
    videos = [part["metadata"] for part in parts if part["type"] == "video"]
    if videos:
        _check_videos(processor, parts)
        options |= {"do_sample_frames": False, "video_metadata": videos}
    return processor.apply_chat_template(
        conversations,
        chat_template=processor.chat_template,  # unless it is given, SmolVLM's processor replaces it beside videos
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs=options,
    )


def _with_plain_text(conversation: list[dict[str, Any]], controls: tuple[str, ...]) -> list[dict[str, Any]]:
    """No text holds a control string. Neighbours become one: templates join them, and halves would make a whole."""
    messages = []
    for message in conversation:
        content: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "text" and content and content[-1]["type"] == "text":
                part = {"type": "text", "text": content.pop()["text"] + part["text"]}
            content.append(part)
        content = [
            {**part, "text": as_plain_text(part["text"], controls)} if part["type"] == "text" else part
            for part in content
        ]
        messages.append({"role": message["role"], "content": content})
    return messages


def _check_videos(processor: ProcessorMixin, parts: list[dict[str, Any]]) -> None:
    """Refuse the batches of which some processors make nonsense."""
    name = type(processor).__name__
    if getattr(processor, "video_processor", None) is None:
        raise ValueError("this model's backbone takes no videos; pass frames as images.")
    # both kinds would go to `pixel_values`, where the model loses the images
    if name == "SmolVLMProcessor" and any(part["type"] == "image" for part in parts):
        raise ValueError("SmolVLM takes either images or videos in one batch; encode them in separate calls.")
    # SmolVLM's would write the longest video's number of frames into every prompt, InternVL's fails
    lengths = {len(part["video"]) for part in parts if part["type"] == "video"}
    if name in ("SmolVLMProcessor", "InternVLProcessor") and len(lengths) > 1:
        raise ValueError(
            f"this model's backbone takes videos of equally many frames in one batch, these have {sorted(lengths)}; "
            "sample as many of each, or encode them in separate calls."
        )


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text`; control tokens that stand in it are encoded as the plain text they are."""
    control = [token for token in tokenizer.added_tokens_encoder if not token.isspace()]
    pattern = "|".join(re.escape(token) for token in sorted(control, key=len, reverse=True))
    ids: list[int] = []
    for piece in re.split(f"({pattern})", text):
        # cut in two, a control token is not recognised any more
        for part in (piece[:1], piece[1:]) if piece in control else (piece,):
            ids += tokenizer(part, add_special_tokens=False)["input_ids"] if part else []
    return ids
