"""Which inputs are read together: batches of like length, within a budget of tokens."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from mmemb_r1.modeling.media_mmemb_r1 import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_file

CHARACTERS_PER_TOKEN = 4
PIXELS_PER_TOKEN = 28 * 28  # of a Qwen-VL; where the processor does not say
LABELS = ("role", "type")  # of messages and their parts
SUFFIXES = {"image": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES}
UNKNOWN_SIZE = (512, 512)  # of pictures and frames that are not looked into: videos, web addresses


class InputSize(NamedTuple):
    """How large an input is, about."""

    media: bool  # whether it has pictures or videos
    tokens: float


def plan_batches(sizes: Sequence[InputSize], batch_size: int, max_batch_tokens: int | None = None) -> list[list[int]]:
    """
    Sort rows, those with media and then the longest first, and cut them into batches.

    Rows with media stay together: each batch that has any runs the part of the model that sees.

    Args:
        sizes: of every row.
        batch_size: rows per batch at most.
        max_batch_tokens: tokens per batch at most, padding included; a longer row is a batch of its own. Default: no
            limit.

    Returns:
        The rows of each batch. Every row is in one of them.

    >>> plan_batches([InputSize(False, 1), InputSize(False, 5), InputSize(True, 3)], batch_size=2)
    [[2, 1], [0]]
    >>> plan_batches([InputSize(False, tokens) for tokens in (1, 5, 3, 2, 2)], batch_size=3, max_batch_tokens=6)
    [[1], [2, 3], [4, 0]]
    """
    batches: list[list[int]] = []
    longest = 0.0
    for row in sorted(range(len(sizes)), key=lambda row: sizes[row], reverse=True):
        tokens = max(longest, sizes[row].tokens)
        fits = bool(batches) and len(batches[-1]) < batch_size
        if fits and (max_batch_tokens is None or (len(batches[-1]) + 1) * tokens <= max_batch_tokens):
            batches[-1].append(row)
            longest = tokens
        else:
            batches.append([row])
            longest = sizes[row].tokens
    return batches


def input_sizes(inputs: Sequence[Any], processor: Any, config: Any) -> list[InputSize]:
    """
    How large each input is: text by its characters, as far as it is read, pictures by what the processor makes of
    their size. Nothing is decoded or downloaded, so videos and what is on the web are of a size that many have.
    """
    measure = Measure(_image_tokens(processor), config.num_video_frames)
    sizes = []
    for value in inputs:
        text, media = measure.tokens(value)
        text = text if config.max_text_tokens is None else min(text, config.max_text_tokens)
        sizes.append(InputSize(media > 0, text + media))
    return sizes


def _image_tokens(processor: Any) -> Callable[[int, int], int]:
    """Width and height -> tokens."""

    @cache
    def tokens(width: int, height: int) -> int:
        try:
            if hasattr(processor, "_get_num_multimodal_tokens"):
                return int(processor._get_num_multimodal_tokens(image_sizes=[(height, width)])["num_image_tokens"][0])
        except ValueError:  # a shape that the processor refuses, which it says when it is given the picture
            pass
        return 1 + width * height // PIXELS_PER_TOKEN

    return tokens


@dataclass(frozen=True)
class Measure:
    """
    Tokens of inputs.

    Args:
        of_picture: width and height -> tokens.
        num_video_frames: frames that are taken of a video file.
    """

    of_picture: Callable[[int, int], int]
    num_video_frames: int

    def tokens(self, value: Any, kind: str | None = None) -> tuple[float, int]:
        """Of text and of media, of an input or of what it holds as a `kind`: text, image or video."""
        if isinstance(value, str) and kind is None:
            kind = next((kind for kind, suffixes in SUFFIXES.items() if value.lower().endswith(suffixes)), "text")
        if isinstance(value, Mapping) and not set(value) <= {"bytes", "path"}:
            parts = [(part, key if key in SUFFIXES else "text") for key, part in value.items() if key not in LABELS]
            if "content" in value:  # a message
                parts = [(value["content"], "text" if isinstance(value["content"], str) else None)]
        elif isinstance(value, list | tuple) and kind != "video":
            parts = [(part, kind) for part in value]
        elif isinstance(value, str) and kind == "text":
            return 1 + len(value) / CHARACTERS_PER_TOKEN, 0  # no whole number: neighbours are of like length, too
        else:
            return 0, self.of_video(value) if kind == "video" else self.of_image(value)
        counted = [self.tokens(part, kind) for part, kind in parts if part is not None]
        return sum(text for text, _ in counted), sum(media for _, media in counted)

    def of_image(self, value: Any) -> int:
        if isinstance(value, Mapping):  # undecoded, of `datasets`
            value = value.get("bytes") or value.get("path")
        if isinstance(value, Image.Image):
            return self.of_picture(*value.size)
        shape = tuple(getattr(value, "shape", ()))
        return self.of_picture(*(_plane(shape) if len(shape) in (2, 3) else _size(value)))

    def of_video(self, value: Any) -> int:
        if isinstance(value, list | tuple) and value:  # of frames
            return sum(map(self.of_image, value))
        shape = tuple(getattr(value, "shape", ()))
        if len(shape) == 4:
            return int(shape[0]) * self.of_picture(*_plane(shape[1:]))
        return self.num_video_frames * self.of_picture(*UNKNOWN_SIZE)


def _plane(shape: tuple[int, ...]) -> tuple[int, int]:
    """Width and height of an array `(height, width)` or with channels, which come first or last."""
    height, width = shape[1:] if len(shape) == 3 and shape[0] in (1, 3, 4) else shape[:2]
    return int(width), int(height)


def _size(source: Any) -> tuple[int, int]:
    """Width and height of a picture that lies in a file or in bytes."""
    is_bytes = isinstance(source, bytes | bytearray)
    if not is_bytes and not (isinstance(source, str | os.PathLike) and is_file(source)):
        return UNKNOWN_SIZE
    try:
        with Image.open(io.BytesIO(source) if is_bytes else os.path.expanduser(source)) as image:
            return image.size
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return UNKNOWN_SIZE  # whoever opens it says what is wrong with it
