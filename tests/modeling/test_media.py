"""What names a picture or video, what may hold one, and what is no whole picture."""

from __future__ import annotations

import base64
import io
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from mmemb_r1.modeling.inputs_mmemb_r1 import InputError, parse_input, to_conversations
from mmemb_r1.modeling.media_mmemb_r1 import (
    IMAGE_FORMATS,
    SUFFIXES,
    VIDEO_FORMATS,
    MediaOptions,
    MediumError,
    open_image,
    parse_address,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
REMOTE = MediaOptions(allow_remote=True)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def kind_of(value: Any, media: MediaOptions = REMOTE) -> str:
    (part,) = parse_input(value, media)[-1]["content"]
    return part["type"]


# --- which string is a picture or video ---


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_file_of_a_medium_is_never_text(kind, tmp_path):
    for suffix in SUFFIXES[kind].split():
        for name in (f"a{suffix}", f"B{suffix.upper()}", f"a b{suffix}", f"c#1{suffix}", f"q?w=1{suffix}"):
            path = tmp_path / name
            path.touch()
            for written in (str(path), f"{path}\n", f" {path}", f'"{path}"', f"file://{path}"):
                assert kind_of(written) == kind, written
            assert kind_of({"text": str(path)}) == "text"


@pytest.mark.parametrize("suffix", SUFFIXES["unsupported"].split())
def test_a_file_of_another_medium_is_refused(suffix, tmp_path):
    path = tmp_path / f"a#1{suffix}"
    path.touch()
    for written in (str(path), f"{path}\n", f"file://{path}"):
        with pytest.raises(ValueError, match=r"is a file of a kind that is not embedded\. .*\{\"text\": \.\.\.\}"):
            parse_input(written)
    assert kind_of({"text": str(path)}) == kind_of(f"a{suffix}") == kind_of("see a" + suffix) == "text"


def test_files_are_opened_however_their_path_is_written(tmp_path):
    path = tmp_path / "a picture.jfif"
    path.write_bytes(encoded(PICTURE, "JPEG", quality=100))
    for written in (str(path), f"{path}\n", f"'{path}'", f"FILE://{str(path).replace(' ', '%20')}"):
        for value in (written, {"image": written}):
            (part,) = to_conversations([value])[0][0]["content"]
            assert part["image"].size == (7, 9)


@pytest.mark.parametrize(
    "address", ["https://e.org/a.png?w=200", "https://e.org/a.jpg#x", "HTTP://E.ORG/A.AVIF", " https://e.org/a.png\n"]
)
def test_addresses_of_pictures_are_pictures(address):
    assert kind_of(address) == "image"
    with pytest.raises(ValueError, match="allow_remote_media=True"):
        parse_input(address)


@pytest.mark.parametrize(
    "text",
    ["https://e.org/?a.png", "https://e.org/report.pdf", "see https://e.org/a.png or not", "https://e.org", "main.ts"]
    + ["data: as of 2020, all", "data:text/plain;base64,TGltYQ==", "data:,Lima", "report.pdf", "data:image/png"],
)
def test_other_strings_are_text(text):
    assert parse_input(text, REMOTE)[0]["content"] == [{"type": "text", "text": text}]


def test_every_spelling_of_a_data_url():
    payload = base64.b64encode(encoded(PICTURE)).decode()
    wrapped = "\n".join(re.findall(".{1,60}", payload))
    for url in (
        f"data:image/png;base64,{payload}",
        f"DATA:image/png;base64,{payload}",
        f"data:IMAGE/PNG;BASE64,{payload}",
        f" data:image/png;base64,{payload}",
        f"\ndata: image/png;base64,{payload}\n",
        f'"data:image/png;base64,{payload}"',
        f"<data:image/png;base64,{payload}>",
        f"data:image/png;charset=utf-8;base64,{payload}",
        f"data:image/png;base64,{wrapped}",
        f"data:image/png;base64,{payload.replace('+', '%2B')}",
    ):
        for value in (url, {"image": url}):
            (part,) = to_conversations([value])[0][0]["content"]
            assert np.array_equal(np.asarray(part["image"]), PIXELS), url[:40]
    for start in ("data:application/octet-stream;base64,", "data:;base64,", "data:audio/mp3;base64,"):
        with pytest.raises(InputError, match="is a data URL of something that is not embedded"):
            to_conversations([start + payload])
        (part,) = to_conversations([{"image": start + payload}])[0][0]["content"]
        assert part["image"].size == (7, 9)


def test_one_list_is_told_everywhere(root):
    """docs/inputs.md and SECURITY.md tell what is read, and nothing else."""
    docs = (root / "docs" / "inputs.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| (\w+) \| ((?:`\.\w+` ?)+) \|", docs, re.MULTILINE)
    assert {kind: names.replace("`", "").split() for kind, names in told} == {
        kind: suffixes.split() for kind, suffixes in SUFFIXES.items()
    }
    security = (root / "SECURITY.md").read_text(encoding="utf-8")
    formats = f"{', '.join(IMAGE_FORMATS)}"
    assert formats in " ".join(security.split())
    assert VIDEO_FORMATS.replace(",", ", ") in " ".join(security.split())


# --- what may hold a picture ---


def test_arrays_and_tensors_of_both_layouts():
    grey = PIXELS[..., 0]
    for source, expected in (
        (PIXELS, PIXELS),
        (PIXELS.transpose(2, 0, 1), PIXELS),
        (torch.from_numpy(PIXELS), PIXELS),
        (torch.from_numpy(PIXELS).permute(2, 0, 1), PIXELS),
        (torch.from_numpy(PIXELS.copy()).requires_grad_(False), PIXELS),
        (grey[None], np.stack([grey] * 3, -1)),
        (grey[..., None], np.stack([grey] * 3, -1)),
        (torch.from_numpy(grey.copy()), np.stack([grey] * 3, -1)),
    ):
        for value in (source, {"image": source}):
            (part,) = to_conversations([value])[0][0]["content"]
            assert np.array_equal(np.asarray(part["image"]), expected)
    small = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)  # either axis could be the channels'
    assert np.array_equal(np.asarray(open_image(small)), small)
    assert np.array_equal(np.asarray(open_image(torch.from_numpy(small))), small.transpose(1, 2, 0))


def test_open_files():
    for file in (io.BytesIO(encoded(PICTURE)), io.BytesIO(encoded(PICTURE, "BMP"))):
        file.seek(5)
        for value in (file, {"image": file}):
            assert np.array_equal(np.asarray(to_conversations([value])[0][0]["content"][0]["image"]), PIXELS)
        assert file.tell() == 5
    with pytest.raises(InputError, match="opened as text; open it with mode 'rb'"):
        to_conversations([{"image": io.StringIO("a")}])


def test_the_first_frame_or_page_is_the_picture():
    other = Image.new("RGB", PICTURE.size, "red")
    for kind in ("TIFF", "PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(PICTURE, kind, save_all=True, append_images=[other], **options)
        assert np.array_equal(np.asarray(open_image(data)), PIXELS)
        chosen = Image.open(io.BytesIO(data))
        chosen.seek(1)
        assert np.array_equal(np.asarray(open_image(chosen)), np.asarray(other))


# --- what is no whole picture ---


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM"])
def test_cut_pictures(kind):
    whole = encoded(Image.new("RGB", (64, 64), "red"), kind)
    open_image(whole)
    for cut in (4, len(whole) // 20 + 4, len(whole) // 2):
        with pytest.raises(MediumError, match="can't be read"):
            open_image(whole[:-cut])


def jpeg(tag: int, kind: int, count: int, value: bytes) -> bytes:
    """A JPEG that EXIF turns, with one more tag."""
    entry = struct.pack("<HHL", tag, kind, count) + value
    exif = b"II*\0" + struct.pack("<LHHHLHH", 8, 2, 0x112, 3, 1, 6, 0) + entry + bytes(4)
    return encoded(PICTURE, "JPEG", exif=b"Exif\0\0" + exif)


def test_whatever_a_decoder_raises_names_the_input(tmp_path):
    path = tmp_path / "a.png"
    PICTURE.save(path)
    with Image.open(path) as closed:
        pass
    odd = [closed, jpeg(0x100, 2, 4, b"abc\0"), jpeg(0x11A, 11, 1, struct.pack("<f", float("nan")))]
    empty = [Image.new("RGB", (0, 5)), np.zeros((4, 0, 3), np.uint8), np.zeros((0, 4), np.uint8), torch.zeros(3, 0, 4)]
    for bad in (*odd, *empty, torch.zeros(3, 4, 4), np.zeros((4, 4), "U1"), np.array(3)):
        with pytest.raises(InputError, match="Input 1 can't be embedded: its image "):
            to_conversations(["fine", {"image": bad}])


def png(depth: int, kind: int, levels: np.ndarray, clear: bytes) -> bytes:
    """A PNG (kind 0: grey, 2: RGB) one of whose colours is transparent."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))

    if depth < 8:
        rows = np.packbits(np.unpackbits(levels[..., None], axis=-1)[..., -depth:].reshape(len(levels), -1), axis=-1)
    else:
        rows = levels.reshape(len(levels), -1).astype(">u2" if depth == 16 else "u1")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">LLBBBBB", levels.shape[1], levels.shape[0], depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", head), chunk(b"tRNS", clear), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    )


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_shade_of_every_depth_is_white(depth):
    most = 2**depth - 1
    levels = np.zeros((8, 8), np.uint16 if depth == 16 else np.uint8)
    levels[:, 4:] = most
    for clear, left, right in ((0, 255, 255), (most, 0, 255)):
        seen = np.asarray(open_image(png(depth, 0, levels, struct.pack(">H", clear))))
        assert (seen[0, 0, 0], seen[0, 7, 0]) == (left, right)
    inner = np.where(levels == 0, most // 2, 0).astype(levels.dtype)
    seen = np.asarray(open_image(png(depth, 0, inner, struct.pack(">H", most // 2))))
    assert (seen[0, 0, 0], seen[0, 7, 0]) == (255, 0 if depth > 1 else 255)


def test_a_transparent_colour_of_sixteen_bits_is_white():
    levels = np.full((8, 8, 3), (60_000, 300, 7), np.uint16)
    levels[:, 4:] = 0
    seen = np.asarray(open_image(png(16, 2, levels, struct.pack(">HHH", 60_000, 300, 7))))
    assert (seen[0, 0].tolist(), seen[0, 7].tolist()) == ([255] * 3, [0] * 3)


@pytest.mark.parametrize("inner", ["PNG", "BMP"])
def test_an_icon_is_not_decoded_beyond_the_limit(inner, monkeypatch):
    """Its directory says 16 x 16, whatever it holds."""
    data = encoded(Image.new("RGBA", (300, 200)), "PNG") if inner == "PNG" else struct.pack("<LLL", 40, 300, 400)
    data += bytes(100)
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHLL", 16, 16, 0, 0, 1, 32, len(data), 22) + data
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("it was decoded"))
    with pytest.raises(MediumError, match="has 300 x 200 pixels, more than max_image_pixels=59999"):
        open_image(icon, MediaOptions(max_image_pixels=300 * 200 - 1))


def test_long_texts_are_looked_at_in_their_ends_only():
    assert parse_address("a" * 10**7 + ".png").kind == "image"
    assert parse_address("data:" + "a" * 10**7).kind is None
