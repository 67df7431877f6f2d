"""Hand mutated inputs to the doors that embed, and compare what comes out with an oracle of its own.

A door is called with a source of randomness. It returns what became of one input, `"embedded"` or `"refused"`, and
raises an `AssertionError` for a wrong vector, an error that is not the product's own, or one that names another input.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from tests.fuzzing.mutators import draw_scalar, mutated_bytes, mutated_text, mutated_value
from tests.fuzzing.random_inputs import as_file, draw_chat, draw_dict, draw_pixels, draw_text, film

from mmemb_r1 import MMEmbR1
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.media_mmemb_r1 import BROKEN_MEDIUM, image_formats
from mmemb_r1.modeling.options_mmemb_r1 import OPTIONS

Door = Callable[[random.Random], str]
EMBEDDED, REFUSED = "embedded", "refused"
BEFORE, AFTER = "the neighbour before it", "and the one that comes after"
NEVER: dict[str, Any] = {"reasoning": "never"}
FILMS = (("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4"), ("mpegts", "mpeg2video"), ("webm", "libvpx"))
KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "ICO")


def vector_of(model: MMEmbR1, value: Any) -> np.ndarray | None:
    """
    Embed an input between two others: its vector, or `None` if it is refused; the neighbours' vectors are theirs.

    Anything but an `InputError` that names its place ends the run.
    """
    try:
        before, vector, after = model.encode([BEFORE, value, AFTER], **NEVER)
    except InputError as error:
        assert error.index == 1, error
        return None
    expected = model.encode([BEFORE, AFTER], **NEVER)
    assert np.abs(np.stack([before, after]) - expected).max() < 1e-5, "a neighbour's vector changed"
    return vector


def assert_same(vector: np.ndarray, expected: np.ndarray, what: str) -> None:
    assert np.abs(vector - expected).max() < 1e-5, what


def seen_pixels(data: bytes) -> Image.Image | None:
    """Decode a picture by PIL alone: upright, transparency on white. `None`: it can't be decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data), formats=image_formats())
            picture.load()
            picture = ImageOps.exif_transpose(picture)
            clear = picture.has_transparency_data
            picture = picture.convert("RGBA")
    except BROKEN_MEDIUM:
        return None
    return (
        Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        if clear
        else (picture.convert("RGB"))
    )


def pictures_door(model: MMEmbR1) -> Door:
    """Damaged files of pictures: what is embedded is what a decoder sees, and a file that ends early is no picture."""

    def check(rng: random.Random) -> str:
        picture = Image.fromarray(draw_pixels(rng, rng.choice((5, 16, 33)), rng.choice((5, 16, 33)), 3))
        if rng.random() < 0.3:
            picture = picture.convert(rng.choice(("L", "P", "RGBA")))
        kind = rng.choice(KINDS)
        picture = picture.convert("RGB") if kind == "JPEG" else picture
        whole = as_file(picture, kind)
        cut = rng.random() < 0.3
        data = whole[: rng.randrange(len(whole))] if cut else mutated_bytes(rng, whole)
        vector = vector_of(model, {"image": data})
        if vector is None:
            return REFUSED
        if cut:
            assert_same(vector, model.encode([{"image": whole}], **NEVER)[0], f"a {kind} of {len(data)} bytes is cut")
            return EMBEDDED
        seen = seen_pixels(data)
        assert seen is not None, f"a {kind} that PIL can't decode is embedded"
        with Image.open(io.BytesIO(data)) as opened:
            depths = str(opened.tile) + opened.mode
        if "16" not in depths and "transparency" not in opened.info:  # PIL's own reading of these is wrong
            assert_same(vector, model.encode([seen], **NEVER)[0], f"a {kind} is embedded as other pixels")
        return EMBEDDED

    return check


def films_door(model: MMEmbR1) -> Door:
    """Damaged files of films: a film that ends early is the whole one or none."""

    def check(rng: random.Random) -> str:
        container, codec = rng.choice(FILMS)
        whole = film(rng.randrange(3), container, codec)
        if rng.random() < 0.4:
            size = rng.randrange(len(whole))
            if container == "mpegts" and size % 188 == 0:  # between two packets nothing tells that more follow
                return REFUSED
            vector = vector_of(model, {"video": whole[:size]})
            if vector is None:
                return REFUSED
            assert_same(vector, model.encode([{"video": whole}], **NEVER)[0], f"{size} bytes of a cut {container}")
            return EMBEDDED
        data = mutated_bytes(rng, whole)
        vector = vector_of(model, {"video": data})
        if vector is None:
            return REFUSED
        assert np.isfinite(vector).all()
        assert_same(vector, model.encode([{"video": io.BytesIO(data)}], **NEVER)[0], "another way to pass it")
        return EMBEDDED

    return check


def strings_door(model: MMEmbR1, folder: Path) -> Door:
    """Bare strings that name a medium somehow: an existing file and a data URL are never taken for words."""

    def check(rng: random.Random) -> str:
        kind = rng.choice(KINDS)
        data = as_file(Image.fromarray(draw_pixels(rng, 8, 8, 3)), kind)
        suffix = rng.choice((f".{kind.lower()}", f".{kind}", ".jfif", ".avif", ".heic", ".txt", ".pdf", ""))
        path = folder / f"{rng.choice(('a', 'b c', 'é', 'x.y', 'q?w=1', 'z#1'))}{suffix}"
        path.write_bytes(data)
        is_address = rng.random() < 0.5
        mime = rng.choice(("image/png", "IMAGE/PNG", "image/png;charset=utf-8", "application/octet-stream", ""))
        address = rng.choice(("data:", "DATA:", "Data:")) + f"{mime};base64," + base64.b64encode(data).decode()
        name = address if is_address else str(path)
        around = rng.choice(("{}", " {}", "{}\n", '"{}"', "'{}'", "<{}>", "\t{} ", "{}?x", "{}.bak"))
        text = around.format(name if is_address or rng.random() < 0.8 else f"file://{name}")
        vector = vector_of(model, text)
        if vector is None:
            return REFUSED
        if np.abs(vector - model.encode([{"text": text}], **NEVER)[0]).max() > 1e-5:
            assert_same(vector, model.encode([{"image": data}], **NEVER)[0], f"{text!r:.80} is another picture")
            return EMBEDDED
        bare = text.strip().strip("\"'<>").strip().removeprefix("file://")
        is_medium = suffix.lower() not in (".txt", "") and os.path.isfile(bare)
        assert not is_medium and not bare.lower().startswith("data:"), f"{text!r:.80} is taken for words"
        return EMBEDDED

    return check


def leaves(value: Any) -> list[str]:
    """List the texts inside a value that a reader would expect to be embedded."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, part in value.items() if key not in ("type", "role") for text in leaves(part)]
    return [text for part in value for text in leaves(part)] if isinstance(value, list | tuple) else []


def structures_door(model: MMEmbR1) -> Door:
    """Dicts and messages with something else in them: nothing that they hold is dropped."""

    def check(rng: random.Random) -> str:
        words = [f"word{rng.randrange(10**6)}" for _ in range(3)]
        value: Any = rng.choice((draw_chat, draw_dict))(rng)
        value = json.loads(json.dumps(value, default=lambda _: rng.choice(words)))  # media are words: they are missed
        value = _without_media(value, rng.choice(words))
        value = mutated_value(rng, value)
        vector = vector_of(model, value)
        if vector is None:
            return REFUSED
        prompt = model.tokenizer.decode(model.preprocess([value])["input_ids"][0])
        for text in leaves(value):
            for word in text.split():
                assert word not in words or word in prompt, f"{word} of {value!r:.300} is not embedded"
        return EMBEDDED

    return check


def _without_media(value: Any, word: str) -> Any:
    """Make the media of a dict or chat texts."""
    if isinstance(value, dict) and value.get("type") in ("image", "video"):
        return {"type": "text", "text": word}
    if isinstance(value, dict):
        return {key: _without_media(part, word) for key, part in value.items() if key not in ("image", "video")}
    return [_without_media(part, word) for part in value] if isinstance(value, list) else value


def options_door(model: MMEmbR1) -> Door:
    """Options with other values: a `ValueError` that names the option, or the vector of the input."""

    def check(rng: random.Random) -> str:
        name = rng.choice([name for name in OPTIONS if name not in ("shard_size", "file_format", "rationales")])
        value = draw_scalar(rng)
        text = draw_text(rng)
        try:
            vectors = model.encode([text, "b"], **{"reasoning": "never", name: value})
        except ValueError as error:
            assert name.removesuffix("_name") in str(error).lower(), f"{name}={value!r:.80}: {error}"
            return REFUSED
        assert len(vectors) == 2, f"{name}={value!r:.80}"
        return EMBEDDED

    return check


def command_door(model: MMEmbR1, folder: Path, run: Callable[[list[str]], tuple[int, str]]) -> Door:
    """Files of JSON lines for `mmemb-r1 encode`: a vector for each line that is not blank, or one line of an error."""
    as_file(Image.new("RGB", (8, 8), "red"), "PNG")
    (folder / "red.png").write_bytes(as_file(Image.new("RGB", (8, 8), "red"), "PNG"))

    def check(rng: random.Random) -> str:
        values = [draw_text(rng), {"text": draw_text(rng), "image": "red.png"}, {"image": ["red.png"]},
                  [{"role": "user", "content": draw_text(rng)}]]  # fmt: skip
        text = "".join(json.dumps(value, ensure_ascii=rng.random() < 0.5) + "\n" for value in values)
        (folder / "in.jsonl").write_bytes(mutated_text(rng, text))
        (folder / "out.jsonl").unlink(missing_ok=True)
        status, said = run(["--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl")])
        if status:
            assert status == 2 and said.startswith("error: "), said
            assert "line " in said or "in.jsonl" in said or "no line to embed" in said, said
            return REFUSED
        lines = [json.loads(line) for line in (folder / "in.jsonl").read_text("utf-8-sig").split("\n") if line.strip()]
        rows = [json.loads(line)["embedding"] for line in (folder / "out.jsonl").read_text("utf-8").splitlines()]
        assert len(rows) == len(lines)
        base = os.getcwd()
        os.chdir(folder)  # what a line says, read from where the file lies
        try:
            for row, value in zip(rows, lines, strict=True):
                assert_same(np.array(row), model.encode(value, **NEVER), f"{value!r:.80}")
        finally:
            os.chdir(base)
        return EMBEDDED

    return check


def pool_door(model: MMEmbR1, pool: Any) -> Door:
    """A pool of processes: what it gives or refuses, and why and where, is what one process does."""

    def outcome(values: list[Any], **options: Any) -> np.ndarray | tuple[int, str]:
        try:
            return model.encode(values, **options, **NEVER)
        except InputError as error:
            return error.index, error.fault

    def check(rng: random.Random) -> str:
        values = [draw_text(rng) for _ in range(5)]
        damaged = mutated_bytes(rng, as_file(Image.fromarray(draw_pixels(rng, 9, 9, 3)), rng.choice(KINDS)))
        odd = {"image": damaged} if rng.random() < 0.5 else mutated_value(rng, draw_dict(rng))
        values.insert(rng.randrange(6), odd)
        here, there = outcome(values), outcome(values, pool=pool, chunk_size=rng.choice((1, 2, 6)))
        if isinstance(here, tuple):
            assert isinstance(there, tuple) and there[0] == here[0], (here, there)
            return REFUSED
        assert not isinstance(there, tuple), there
        assert_same(there, here, "a pool gives other vectors")
        return EMBEDDED

    return check
