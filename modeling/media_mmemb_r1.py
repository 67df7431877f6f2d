"""Open pictures: whatever holds one becomes upright RGB pixels, or an error that says what is wrong."""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .remote_mmemb_r1 import download

# The one list of what is read. What else refers to it, or is tested against it: docs/inputs.md, SECURITY.md, errors.
# Other formats can name further files and addresses (playlists, SDP), or run programs (EPS).
IMAGE_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM")
VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif"  # FFmpeg's names of containers
SUFFIXES = {
    "image": ".png .apng .jpg .jpeg .jpe .jfif .mpo .webp .gif .bmp .dib .tif .tiff .avif .jp2 .j2k .jpx .jpf .ico "
    ".ppm .pgm .pbm .pnm",
    "video": ".mp4 .m4v .mov .mkv .webm .avi .ts .mts .m2ts .mpg .mpeg .vob .flv .f4v .ogv .3gp .3g2 .mj2",
    # media all the same: a file of one of these is never embedded as the words of its name
    "unsupported": ".heic .heif .hif .svg .svgz .pdf .djvu .tga .psd .xcf .eps .jxl .exr .hdr .dds .icns .wmf .emf "
    ".dng .cr2 .cr3 .nef .arw .wmv .asf .rm .rmvb .mxf .swf .m3u8 .mp3 .wav .flac .ogg .oga .opus .aac .m4a .wma "
    ".aiff",
}
_KINDS = {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes.split()}
_DATA_URL = re.compile(r"data:\s*([\w.+-]+/[\w.+-]+)?((?:\s*;[^;,\s]+)*)\s*,", re.IGNORECASE)
# What decoders raise for files that are damaged, besides errors of their own
BROKEN_MEDIUM = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, LookupError, MemoryError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error, Image.DecompressionBombError),
)


class MediumError(ValueError):
    """Say what is wrong with a picture or video, what is allowed and what to do."""


@dataclass(frozen=True)
class MediaOptions:
    """
    Say how pictures and videos are opened, and what is too large.

    Args:
        num_video_frames: frames that are sampled evenly from a video file.
        max_image_pixels: width x height of a picture or of a video's frame. A file of a few kilobytes can hold a
            picture that fills the memory.
        max_video_frames: frames of a video.
        max_video_pixels: width x height x frames of what is kept of a video.
        allow_remote: whether web addresses are downloaded.
    """

    num_video_frames: int = 8
    max_image_pixels: int = 2**26
    max_video_frames: int = 2**18
    max_video_pixels: int = 2**28
    allow_remote: bool = False

    @classmethod
    def of(cls, config: Any, allow_remote: bool = False) -> MediaOptions:
        """Take those of an `MMEmbR1Config`. It can't allow downloads, because it comes with a checkpoint."""
        names = ("num_video_frames", "max_image_pixels", "max_video_frames", "max_video_pixels")
        return cls(**{name: getattr(config, name) for name in names}, allow_remote=allow_remote)


DEFAULTS = MediaOptions()


class Address(NamedTuple):
    """Say where a picture or video is: see `parse_address`."""

    place: str
    kind: str | None
    target: str


def parse_address(text: str) -> Address:
    """
    Read a text as the address of a picture or video: the one rule for what is a path, a web address and a data URL.

    Blanks and quotes around it don't count, nor do capitals, nor a web address's query.

    Returns:
        The place, `"data"` (a data URL), `"web"` or `"path"` (`file://` too); the kind, `"image"`, `"video"` or
        `"unsupported"` (a medium that is not read, or a data URL that does not say which one it holds), if the text
        plainly names one, else `None`; and the address itself.

    >>> parse_address("HTTPS://example.org/a.PNG?width=200")
    Address(place='web', kind='image', target='HTTPS://example.org/a.PNG?width=200')
    >>> parse_address(" Data:video/mp4;base64,AAAA")
    Address(place='data', kind='video', target='Data:video/mp4;base64,AAAA')
    >>> parse_address("Lima")
    Address(place='path', kind=None, target='Lima')
    """
    target = text.strip()
    if len(target) > 1 and target[0] + target[-1] in ('""', "''", "``", "<>"):
        target = target[1:-1].strip()
    scheme = target[:8].lower()
    if scheme.startswith("data:") and (found := _DATA_URL.match(target)):
        mime, options = (found[1] or "text/plain").lower(), found[2].lower()
        kind = mime.split("/")[0]
        if kind not in ("image", "video"):
            is_binary = options.endswith(";base64") and not (found[1] and kind == "text")
            return Address("data", "unsupported" if is_binary or kind == "audio" else None, target)
        return Address("data", kind, target)
    if scheme.startswith(("http://", "https://")) and not re.search(r"\s", target):
        kind = _kind(re.split("[?#]", target, maxsplit=1)[0])
        return Address("web", None if kind == "unsupported" else kind, target)  # the page of a PDF is a text, too
    if scheme.startswith("file://"):
        target = _file_path(target)
    return Address("path", _kind(target), target)


def _file_path(address: str) -> str:
    """Read the path of a `file://` address, in which `?` and `#` may be part of a name that nobody escaped."""
    path = unquote(re.sub("^[^/]*//[^/]*", "", address))
    before = re.split("[?#]", path, maxsplit=1)[0]
    return path if _kind(before) is None else before


def _kind(path: str) -> str | None:
    return _KINDS.get(os.path.splitext(path[-16:].lower())[1])  # of a long text only the end is looked at


def stored_source(source: Any) -> Any:
    """Take an undecoded picture or video of `datasets`, `{"bytes", "path"}`, as its bytes or its path."""
    if isinstance(source, Mapping) and set(source) <= {"bytes", "path"}:
        return source.get("bytes") or source.get("path")
    return source


def find_file(path: str | os.PathLike[str]) -> str | None:
    """Find the file that a path or a text names, as it is written or as `parse_address` reads it."""
    names = (path, parse_address(path).target) if isinstance(path, str) else (path,)
    # unlike Path.is_file, False for names no file system takes; `~` is the home folder
    return next((name for name in map(os.path.expanduser, names) if os.path.isfile(name)), None)


def is_array(source: Any) -> bool:
    """Tell whether pixels come as an array or as a tensor of torch."""
    return isinstance(source, np.ndarray) or (hasattr(source, "detach") and hasattr(source, "ndim"))


def pixel_array(source: Any) -> np.ndarray:
    """
    Take an array or tensor of pixels as an array with the channels last.

    Where both the first and the last axis could be that of the channels, it is the last one of an array and the first
    one of a tensor, as everywhere in numpy and torch.

    >>> pixel_array(np.zeros((3, 8, 9), np.uint8)).shape, pixel_array(np.zeros((3, 9, 3), np.uint8)).shape
    ((8, 9, 3), (3, 9, 3))
    """
    is_tensor = not isinstance(source, np.ndarray)
    pixels = np.asarray(source.detach().cpu()) if is_tensor else source
    if pixels.ndim < 3:
        return pixels
    first, last = pixels.shape[-3] in (1, 3, 4), pixels.shape[-1] in (1, 3, 4)
    return np.moveaxis(pixels, -3, -1) if first and (is_tensor or not last) else pixels


@contextlib.contextmanager
def reading(kind: str, source: Any, hint: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn whatever a decoder raises into a `MediumError`; `errors`: further ones."""
    broken: tuple[type[Exception], ...] = (*BROKEN_MEDIUM, *errors)
    try:
        yield
    except MediumError:
        raise
    except broken as error:
        # PIL's own words for an unknown format show an address in memory
        unknown = f"it is in none of the formats {', '.join(image_formats())}"
        why = unknown if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise MediumError(f"its {kind} {source_name(source)} can't be read ({why}). {hint}") from error


def open_image(source: Any, options: MediaOptions = DEFAULTS) -> Image.Image:
    """
    Open a picture as RGB, upright (EXIF) and with transparency on white; of several frames or pages, the first.

    Args:
        source: a PIL image, a path, the bytes of a file or an open one, a `data:` URL, an array or tensor of uint8
            `(H, W)`, `(H, W, C)` or `(C, H, W)` with 1, 3 or 4 channels, or the `{"bytes", "path"}` dict of an
            undecoded `datasets` image; a web address where that is allowed.
        options: limits.

    Raises:
        MediumError: if there is no such file, it is no picture or not a whole one, it is too large, or its pixels have
            no range (32-bit).
    """
    source = stored_source(source)
    with reading("image", source, "Pass a picture that is whole."):
        if is_array(source):
            source = _from_array(source)
        data = None if isinstance(source, Image.Image) else read_source(source, "image", options)
        if data is not None and data[:4] == b"\0\0\1\0":
            _check_icons(data, options)  # PIL decodes these when it opens them
        image = source if data is None else Image.open(io.BytesIO(data), formats=image_formats())
        check_size(f"image {source_name(source)}", image.size, options)  # nothing is decoded yet
        if 0 in image.size:
            raise MediumError(f"its image has no pixels (size {image.size}).")
        if data is not None and image.format == "PNG" and not _ends(data):
            raise EOFError("image file is truncated: it lacks its end")
        levels = _transparent_levels(image)
        return _rgb(ImageOps.exif_transpose(image), levels)


@cache
def image_formats() -> tuple[str, ...]:
    """List those of `IMAGE_FORMATS` that this installation of PIL reads."""
    Image.init()
    return tuple(name for name in IMAGE_FORMATS if name in Image.OPEN)


def check_size(name: str, size: tuple[int, int], options: MediaOptions) -> None:
    """Refuse a picture or frame with more pixels than the config allows."""
    if size[0] * size[1] > options.max_image_pixels:
        raise MediumError(
            f"its {name} has {size[0]} x {size[1]} pixels, more than max_image_pixels={options.max_image_pixels} of "
            "the config; make it smaller, or raise that limit if you trust where it comes from."
        )


def _check_icons(data: bytes, options: MediaOptions) -> None:
    """Look into the icons of an ICO file: what its directory says of their sizes need not be true."""
    for entry in range(6, 6 + 16 * int.from_bytes(data[4:6], "little"), 16):
        length, start = struct.unpack_from("<LL", data, entry + 8)
        if start + length > len(data):
            raise EOFError("image file is truncated")
        if data[start : start + 8] == b"\x89PNG\r\n\x1a\n":
            size = struct.unpack_from(">LL", data, start + 16)
        else:
            width, height = struct.unpack_from("<LL", data, start + 4)
            size = (width, height // 2)  # a bitmap and its mask
        check_size("image (an icon)", size, options)


def _ends(data: bytes) -> bool:
    """Tell whether a PNG has its last chunk."""
    place = 8
    while place + 12 <= len(data):
        if data[place + 4 : place + 8] == b"IEND":
            return True
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return False


def _from_array(source: Any) -> Image.Image:
    pixels = pixel_array(source)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))):
        raise MediumError(
            f"its image is an array of {pixels.dtype} with shape {tuple(source.shape)}; allowed: uint8 with shape "
            "(H, W), (H, W, C) or (C, H, W) and 1, 3 or 4 channels."
        )
    if 0 in pixels.shape:
        raise MediumError(f"its image has no pixels (size {pixels.shape[1::-1]}).")
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def _transparent_levels(image: Any) -> int | tuple[int, ...] | None:
    """
    Get the colour of a PNG that is transparent, by the values of its decoded pixels.

    A PNG names it by the values in the file. PIL compares these with what it decoded to 8 bits.
    """
    clear = image.info.get("transparency")
    if image.format != "PNG" or image.mode == "P" or clear is None or isinstance(clear, bytes) or not image.tile:
        return None
    depth = str(image.tile[0][3])
    if depth.startswith("I;16"):
        return int(clear)
    if depth in ("L;2", "L;4"):
        return int(clear) * {"L;2": 85, "L;4": 17}[depth]
    return tuple(level >> 8 for level in clear) if ";16" in depth and isinstance(clear, tuple) else None


def _rgb(image: Image.Image, clear: int | tuple[int, ...] | None = None) -> Image.Image:
    """Make a picture RGB, with what is transparent on white; `clear`: a colour that is."""
    if image.mode in ("I", "F"):
        raise MediumError(
            f"its image has 32-bit pixels (mode {image.mode}) of unknown range; convert it to 8 or 16 bits."
        )
    if clear is not None and isinstance(clear, tuple):
        image.info["transparency"] = clear
    if image.mode.startswith("I;16"):  # PIL would clip these to the darkest 1/256 of their range
        levels = np.asarray(image)
        shades = (levels >> 8).astype(np.uint8)
        return Image.fromarray(shades if clear is None else np.where(levels == clear, 255, shades)).convert("RGB")
    if isinstance(clear, int):
        image.info["transparency"] = clear
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_source(source: Any, kind: str, options: MediaOptions = DEFAULTS) -> bytes:
    """
    Read the bytes of a picture's or video's file.

    Args:
        source: a path, a data URL, a web address where that is allowed, bytes, or an open file.
        kind: `"image"` or `"video"`, for messages.
        options: whether web addresses are downloaded.

    Raises:
        MediumError: if there is no such file, or it is not allowed.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, io.IOBase):
        return _read_open_file(source, kind)
    place, _, target = parse_address(source) if isinstance(source, str) else (None, None, "")
    if place == "data":
        header, _, payload = target.partition(",")
        data = unquote_to_bytes(payload)
        try:
            is_base64 = header.lower().rstrip().endswith(";base64")
            return base64.b64decode(b"".join(data.split()), validate=True) if is_base64 else data
        except binascii.Error as error:
            raise MediumError(f"its data URL {source_name(source)} is not valid base64 ({error}).") from error
    if place == "web":
        if options.allow_remote:
            return download(target)
        raise MediumError(
            f"{source!r:.200} is a web address; nothing is downloaded unless that is asked for. Download the {kind} "
            "and pass its path or bytes, or encode with allow_remote_media=True."
        )
    if not isinstance(source, str | Path):
        decoded = {"image": "a PIL image or array", "video": "a list of frames or an array"}[kind]
        raise MediumError(
            f"its {kind} is of type {type(source).__name__}; allowed: {decoded}, a path, bytes or a data URL."
        )
    if (path := find_file(source)) is None:
        raise MediumError(f"there is no {kind} file {str(source)!r:.200}.")
    return Path(path).read_bytes()


def _read_open_file(file: Any, kind: str) -> bytes:
    """Read an open file from its beginning; it is left where it was."""
    place = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(place)
    if not isinstance(data, bytes):
        raise MediumError(f"its {kind} is a file that was opened as text; open it with mode 'rb'.")
    return data


def source_name(source: Any) -> str:
    """Name a picture or video in messages."""
    if isinstance(source, bytes | bytearray | memoryview):
        return f"of {len(source)} bytes"
    if is_array(source):
        return f"of shape {tuple(source.shape)}"
    name = re.sub(" at 0x[0-9a-fA-F]+", "", str(source))  # the same input gives the same message
    if len(name) <= 60:
        return repr(name)
    return repr(f"{name[:57]}..." if parse_address(name).place == "data" else f"...{name[-57:]}")  # a path by its file
