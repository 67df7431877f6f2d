"""Draw inputs of every kind by a seed: texts, pictures and videos in each way they may come, messages, mixed parts."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmemb_r1.modeling.inputs_mmemb_r1 import EmptyText

WORDS = (
    "Lima is the capital of Peru which two pictures show a flag with 15 stripes Grüße aus 東京 🦙 <think> <|embed|> "
    "<|im_end|> http://example.org naïve \t {} a.b.c 3.14"
).split(" ")
SIDES = (1, 2, 3, 5, 16, 28, 30, 50, 64, 96)  # of pictures, and the first ones where channels are guessed
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def draw_text(rng: random.Random) -> str:
    """Draw some words; now and then many."""
    number = rng.choice((1, 2, 3, 5, 8, 13, 40))
    return rng.choice(("", "", " ", "\n")) + "x" + " ".join(rng.choice(WORDS) for _ in range(number))


def draw_pixels(rng: random.Random, *shape: int) -> np.ndarray:
    """Draw noise, uint8, of the given shape."""
    return np.random.default_rng(rng.randrange(2**32)).integers(0, 256, shape, dtype=np.uint8)


def draw_picture(rng: random.Random) -> Any:
    """Draw a picture: in memory (every mode), as an array or tensor, as the bytes of a file or as a data URL."""
    width, height = rng.choice(SIDES), rng.choice(SIDES)
    picture = Image.fromarray(draw_pixels(rng, height, width, 3))
    kind = rng.choice(("picture", "mode", "array", "tensor", "file", "stored", "address", "open"))
    if kind == "mode":
        return (
            picture.convert(rng.choice(("L", "P", "1", "CMYK", "YCbCr")))
            if rng.random() < 0.7
            else _clear(rng, picture)
        )
    if kind == "array":
        return draw_pixels(rng, height, width, *rng.choice(((), (1,), (3,), (4,))))
    if kind == "tensor":
        return torch.from_numpy(draw_pixels(rng, 3, height, width))
    if kind == "picture":
        return picture
    data = as_file(picture, rng.choice(FORMATS))
    if kind == "stored":
        return {"bytes": data, "path": None}
    if kind == "open":
        return io.BytesIO(data)
    return data if kind == "file" else "data:image/png;base64," + base64.b64encode(data).decode()


def _clear(rng: random.Random, picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGBA")
    picture.putalpha(Image.fromarray(draw_pixels(rng, picture.height, picture.width)))
    return picture


def as_file(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """Get the bytes of a picture's file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@cache
def film(seed: int, container: str = "mp4", codec: str = "libx264") -> bytes:
    """Make the file of a film of 3 to 10 frames; its frames move, so that the order matters."""
    import av

    rng = random.Random(seed)
    width, height, number = 2 * rng.randint(8, 32), 2 * rng.randint(8, 32), rng.randint(3, 10)
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rng.choice((5, 10, 25)))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for place in range(number):
            pixels = draw_pixels(rng, height, width, 3) // 8
            pixels[:, : 1 + width * place // number] += 128
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")):
                output.mux(packet)
        for packet in stream.encode():
            output.mux(packet)
    return file.getvalue()


def draw_video(rng: random.Random) -> Any:
    """Draw a video: frames as an array, tensor or pictures, with or without their times, or a film's file."""
    frames, height, width = rng.choice((1, 2, 3, 4, 5, 8)), rng.choice(SIDES), rng.choice(SIDES)
    kind = rng.choice(("array", "array", "tensor", "pictures", "times", "file", "stored"))
    if kind in ("file", "stored"):
        data = film(rng.randrange(6))
        return data if kind == "file" else {"bytes": data, "path": None}
    pixels = draw_pixels(rng, frames, height, width, 3)
    if kind == "tensor":
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 1)))
    if kind == "times":
        return {"array": pixels, "video_metadata": {"fps": rng.choice((1.0, 4.0, 24.0))}}
    return pixels if kind == "array" else [Image.fromarray(frame) for frame in pixels]


def draw_dict(rng: random.Random) -> dict[str, Any]:
    """Draw a dict with some of `text`, `image`, `video` and `instruction`."""
    value: dict[str, Any] = {}
    if rng.random() < 0.6:
        value["image"] = [draw_picture(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    if rng.random() < 0.25:
        value["video"] = draw_video(rng)
    if rng.random() < 0.6 or not value:
        value["text"] = draw_text(rng) if rng.random() < 0.9 else EmptyText()
    if rng.random() < 0.3:
        value["instruction"] = draw_text(rng)
    return value


def draw_chat(rng: random.Random) -> list[dict[str, Any]]:
    """Draw chat messages, the media anywhere among the texts."""
    turns: list[dict[str, Any]] = []
    if rng.random() < 0.4:
        turns.append({"role": "system", "content": draw_text(rng)})
    for place in range(rng.choice((1, 1, 3))):
        parts = [_draw_part(rng) for _ in range(rng.choice((1, 2, 3)))]
        if place % 2:
            parts = [{"type": "text", "text": draw_text(rng)}]
        turns.append({"role": "assistant" if place % 2 else "user", "content": parts})
    return turns


def _draw_part(rng: random.Random) -> dict[str, Any]:
    kind = rng.choice(("text", "text", "image", "image", "video"))
    makers: dict[str, Callable[[random.Random], Any]] = {"text": draw_text, "image": draw_picture, "video": draw_video}
    return {"type": kind, kind: makers[kind](rng)}


def draw_input(rng: random.Random) -> Any:
    """Draw one input of any kind."""
    kind = rng.choice(("text", "text", "picture", "video", "video", "video", "dict", "dict", "chat"))
    if kind == "video":
        return {"video": draw_video(rng)}
    if kind == "picture":
        picture = draw_picture(rng)
        return {"image": picture} if isinstance(picture, str | dict) else picture
    return {"text": draw_text, "dict": draw_dict, "chat": draw_chat}[kind](rng)


def draw_batch(rng: random.Random, pool: Sequence[Any], most: int = 4) -> list[int]:
    """Draw places of some inputs of a pool, one of them twice now and then."""
    return [rng.randrange(len(pool)) for _ in range(rng.randint(2, most))]
