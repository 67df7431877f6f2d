"""Open pictures and videos: whatever holds them becomes upright RGB pixels, or an error that says what is wrong."""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .remote_mmemb_r1 import download

_WEB = ("http://", "https://")
_SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    "video": (".mp4", ".mov", ".mkv", ".webm", ".avi"),
}
_LONGEST = len("https://")  # of these: only the ends of a text are looked at
# What is decoded. Other formats can name further files and addresses (playlists, SDP), or run programs (EPS).
IMAGE_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM")
VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif"  # FFmpeg's names of containers


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


def parse_address(text: str) -> Address:
    """
    Read a text as the address of a picture or video: the one rule for what is a path, a web address and a data URL.

    Returns:
        The place, `"data"` (a data URL), `"web"` or `"path"`; and the kind, `"image"` or `"video"`, if the text
        plainly names one, else `None`.

    >>> parse_address("HTTPS://example.org/a.PNG")
    Address(place='web', kind='image')
    >>> parse_address("data:video/mp4;base64,AAAA")
    Address(place='data', kind='video')
    >>> parse_address("Lima")
    Address(place='path', kind=None)
    """
    if text.startswith("data:"):
        return Address("data", next((kind for kind in _SUFFIXES if text.startswith(f"data:{kind}/")), None))
    end = text[-_LONGEST:].lower()
    kind = next((kind for kind, suffixes in _SUFFIXES.items() if end.endswith(suffixes)), None)
    return Address("web" if text[:_LONGEST].lower().startswith(_WEB) else "path", kind)


def stored_source(source: Any) -> Any:
    """Take an undecoded picture of `datasets`, `{"bytes", "path"}`, as its bytes or its path; all else as it is."""
    if isinstance(source, Mapping) and set(source) <= {"bytes", "path"}:
        return source.get("bytes") or source.get("path")
    return source


def is_file(path: str | os.PathLike[str]) -> bool:
    """Tell whether there is such a file; `~` is the home folder."""
    return os.path.isfile(os.path.expanduser(path))  # unlike Path.is_file, False for names no file system takes


def open_image(source: Any, options: MediaOptions = DEFAULTS) -> Image.Image:
    """
    Open a picture as RGB, upright (EXIF) and with transparency on white.

    Args:
        source: a PIL image, a path, the bytes of a file, a `data:` URL, an array `(H, W)` or `(H, W, 3 | 4)` of uint8,
            or the `{"bytes", "path"}` dict of an undecoded `datasets` image; a web address where that is allowed.
        options: limits.

    Raises:
        ValueError: if there is no such file, it is no picture, it is too large, or its pixels have no range (32-bit).
    """
    source = stored_source(source)
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    data = None if isinstance(source, Image.Image) else read_source(source, "image", options)
    try:
        image = source if data is None else Image.open(io.BytesIO(data), formats=image_formats())
        _check_size(f"image {_name(source)}", image.size, options)  # nothing is decoded yet
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        # PIL's own words for an unknown format show an address in memory
        unknown = f"it is in none of the formats {', '.join(image_formats())}"
        why = unknown if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"its image {_name(source)} can't be read ({why}). Pass a picture that is whole.") from error
    if 0 in image.size:
        raise ValueError(f"its image has no pixels (size {image.size}).")
    return _rgb(image)


@cache
def image_formats() -> tuple[str, ...]:
    """List those of `IMAGE_FORMATS` that this installation of PIL reads."""
    Image.init()
    return tuple(name for name in IMAGE_FORMATS if name in Image.OPEN)


def _check_size(name: str, size: tuple[int, int], options: MediaOptions) -> None:
    if size[0] * size[1] > options.max_image_pixels:
        raise ValueError(
            f"its {name} has {size[0]} x {size[1]} pixels, more than max_image_pixels={options.max_image_pixels} of "
            "the config; make it smaller, or raise that limit if you trust where it comes from."
        )


def _check_kept(name: str, pixels: int, options: MediaOptions) -> None:
    if pixels > options.max_video_pixels:
        raise ValueError(
            f"its {name} has more than max_video_pixels={options.max_video_pixels} of the config in the frames that "
            "are kept; take fewer or smaller ones, or raise that limit."
        )


def _check_length(name: str, frames: int, options: MediaOptions) -> None:
    if frames > options.max_video_frames:
        raise ValueError(
            f"its {name} has more than max_video_frames={options.max_video_frames} of the config; cut it, or raise "
            "that limit."
        )


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


def read_source(source: Any, kind: str, options: MediaOptions = DEFAULTS) -> bytes:
    """
    Read the bytes of a picture's or video's file.

    Args:
        source: a path, a data URL, a web address where that is allowed, or bytes.
        kind: `"image"` or `"video"`, for messages.
        options: whether web addresses are downloaded.

    Raises:
        ValueError: if there is no such file, or it is not allowed.
    """
    if isinstance(source, bytes | bytearray):
        return bytes(source)
    place = parse_address(source).place if isinstance(source, str) else None
    if place == "data":
        header, _, payload = source.partition(",")
        try:
            return (
                base64.b64decode(payload, validate=True) if header.endswith(";base64") else unquote_to_bytes(payload)
            )
        except binascii.Error as error:
            raise ValueError(f"its data URL {_name(source)} is not valid base64 ({error}).") from error
    if place == "web":
        if options.allow_remote:
            return download(source)
        raise ValueError(
            f"{source!r:.200} is a web address; nothing is downloaded unless that is asked for. Download the {kind} "
            "and pass its path or bytes, or encode with allow_remote_media=True."
        )
    if not isinstance(source, str | Path):
        decoded = {"image": "a PIL image or array", "video": "a list of frames or an array"}[kind]
        raise ValueError(
            f"its {kind} is of type {type(source).__name__}; allowed: {decoded}, a path, bytes or a data URL."
        )
    if not is_file(source):
        raise ValueError(f"there is no {kind} file {str(source)!r:.200}.")
    return Path(os.path.expanduser(source)).read_bytes()


def _name(source: Any) -> str:
    if isinstance(source, bytes | bytearray):
        return f"of {len(source)} bytes"
    name = str(source)
    if len(name) <= 60:
        return repr(name)
    return repr(f"{name[:57]}..." if parse_address(name).place == "data" else f"...{name[-57:]}")  # a path by its file


def open_video(source: Any, options: MediaOptions = DEFAULTS) -> tuple[np.ndarray, dict[str, Any]]:
    """
    Open a video as frames `(T, H, W, 3)` of uint8 and their metadata.

    Args:
        source: a path or the bytes of a file (decoded with PyAV, some of its frames, evenly spread), or the frames
            themselves, as an array or a list of pictures: these are all kept.
        options: how many frames to sample from a file, and limits.

    Raises:
        ValueError: if there is no such file, it is no video, there are no frames, or it is too large.
    """
    if isinstance(source, np.ndarray) and source.ndim == 4:
        source = list(source)
    if isinstance(source, list | tuple):
        if not source:
            raise ValueError("its video has no frames.")
        _check_length("video", len(source), options)
        frames, pixels = [], 0
        for frame in source:
            frames.append(np.asarray(open_image(frame, options)))
            pixels += frames[-1].shape[0] * frames[-1].shape[1]
            _check_kept("video", pixels, options)
        if len({frame.shape for frame in frames}) > 1:
            raise ValueError("the frames of its video differ in size; resize them to one size.")
        return np.stack(frames), _metadata(len(frames), 24.0, range(len(frames)))
    return _decode_video(source, options)


def _decode_video(source: Any, options: MediaOptions) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        import av
    except ImportError as error:
        raise ValueError("videos need PyAV: pip install av, or pass the frames as a list of pictures.") from error

    data = read_source(source, "video", options)
    num_frames = options.num_video_frames
    try:
        with av.open(io.BytesIO(data), "r", container_options={"format_whitelist": VIDEO_FORMATS}) as container:
            rate = float(container.streams.video[0].average_rate or 24.0) if container.streams.video else 24.0
            # only as much as is sampled is kept as arrays: an hour of frames does not fit into memory
            total = _count_frames(f"video {_name(source)}", container, options) if container.streams.video else 0
        wanted = sorted(
            set(np.linspace(0, max(total - 1, 0), min(num_frames, max(total, 1))).round().astype(int).tolist())
        )
        with av.open(io.BytesIO(data), "r", container_options={"format_whitelist": VIDEO_FORMATS}) as container:
            decoded = enumerate(container.decode(video=0)) if total else iter(())
            frames, pixels = [], 0
            for index, frame in decoded:
                if index in wanted:
                    pixels += frame.width * frame.height
                    _check_kept(f"video {_name(source)}", pixels, options)
                    frames.append(frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, OSError) as error:
        raise ValueError(
            f"its video {_name(source)} can't be read ({error}). Pass a video that FFmpeg can open."
        ) from error
    if not frames:
        raise ValueError(f"its video {_name(source)} has no frames.")
    return np.stack(frames), _metadata(total, rate, wanted)


def _count_frames(name: str, container: Any, options: MediaOptions) -> int:
    context, total = container.streams.video[0].codec_context, 0
    _check_size(name, (context.width, context.height), options)
    for frame in container.decode(video=0):
        _check_size(name, (frame.width, frame.height), options)  # a stream may change its size
        total += 1
        _check_length(name, total, options)
    return total


def _metadata(total: int, fps: float, indices: Sequence[int]) -> dict[str, Any]:
    return {"total_num_frames": total, "fps": fps, "duration": total / fps, "frames_indices": list(indices)}
