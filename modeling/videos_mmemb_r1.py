"""Open videos as the frames that are shown and their times: upright, in their aspect ratio, and whole."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .media_mmemb_r1 import (
    DEFAULTS,
    VIDEO_FORMATS,
    MediaOptions,
    MediumError,
    check_size,
    is_array,
    open_image,
    pixel_array,
    read_source,
    reading,
    source_name,
    stored_source,
)

ATTACHED_PICTURE = 0x400  # of a stream, in FFmpeg: a cover
FPS = 24.0  # of frames that come without their times
CLOSE = 0.1  # in frames: a time so near to a frame's number is that number, which containers round


def open_video(source: Any, options: MediaOptions = DEFAULTS) -> tuple[np.ndarray, dict[str, Any]]:
    """
    Open a video as frames `(T, H, W, 3)` of uint8 and their metadata.

    Args:
        source: the path, bytes or open file of a video or an undecoded one of `datasets` (decoded with PyAV) or a
            decoder such as torchcodec's: some frames, evenly spread; or the frames themselves, as an array or tensor
            `(T, H, W, C)` or `(T, C, H, W)`, a list of pictures, or `{"array", "video_metadata"}`: these are all kept.
        options: how many frames to sample from a file, and limits.

    Raises:
        MediumError: if there is no such file, it is no video or not a whole one, there are no frames, or it is too
            large.
    """
    source = stored_source(source)
    given = given_frames(source)
    if given is None:
        if hasattr(source, "get_frames_at"):
            with reading("video", source, "Pass the frames as a list of pictures."):
                return _ask_decoder(source, options)
        return _decode_video(source, options)
    frames, metadata = given
    _check_length("video", len(frames), options)
    opened, pixels = [], 0
    for frame in frames:
        opened.append(np.asarray(open_image(frame, options)))
        pixels += opened[-1].shape[0] * opened[-1].shape[1]
        _check_kept("video", pixels, options)
    return _stacked("video", opened), metadata


def given_frames(source: Any) -> tuple[list[Any], dict[str, Any]] | None:
    """Get the frames of a video that is in memory, and what is known of them; `None` of anything else."""
    told: Mapping[str, Any] = {}
    if isinstance(source, Mapping) and "array" in source:
        source, told = source["array"], source.get("video_metadata") or {}
    if is_array(source):
        if source.ndim != 4:
            raise MediumError(
                f"its video is an array with shape {tuple(source.shape)}; allowed: (T, H, W, C) or (T, C, H, W)."
            )
        source = list(pixel_array(source))
    if not isinstance(source, list | tuple):
        return None
    fps = told.get("fps") or FPS
    indices = list(told["frames_indices"]) if told.get("frames_indices") is not None else list(range(len(source)))
    if len(indices) != len(source):
        raise MediumError(f"its video has {len(source)} frames, but {len(indices)} frames_indices in video_metadata.")
    return list(source), _metadata(told.get("total_num_frames") or len(source), float(fps), indices)


def _decode_video(source: Any, options: MediaOptions) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        import av
    except ImportError as error:
        raise MediumError("videos need PyAV: pip install av, or pass the frames as a list of pictures.") from error

    name = f"video {source_name(source)}"
    with reading("video", source, "Pass a video that FFmpeg can open.", av.FFmpegError):
        data = read_source(source, "video", options)
        if _is_cut(data):
            raise EOFError("it is cut: its container tells of more than there is")
        with _container(av, data) as container:
            times = _frame_times(name, container, options)
            film = _film(container)
            fps = float((film.average_rate if film is not None else None) or FPS)
        wanted = _spread(len(times), options.num_video_frames)
        with _container(av, data) as container:
            ratio = _film(container).sample_aspect_ratio or 1 if times else 1
            frames, pixels = [], 0
            for index, frame in enumerate(container.decode(_film(container)) if times else ()):
                if index in wanted:
                    width, height = _shown_size(frame, ratio)
                    check_size(name, (width, height), options)
                    pixels += width * height
                    _check_kept(name, pixels, options)
                    frames.append(_shown(frame, width, height))
        return _stacked(name, frames), _metadata(len(times), fps, _indices(times, fps, wanted))


def _container(av: Any, data: bytes) -> Any:
    return av.open(io.BytesIO(data), "r", container_options={"format_whitelist": VIDEO_FORMATS})


def _film(container: Any) -> Any:
    """Pick the stream that is shown: not a cover, nor a still beside the film."""
    films = [stream for stream in container.streams.video if not stream.disposition.value & ATTACHED_PICTURE]
    best = container.streams.best("video")
    return next((film for film in films if best is not None and film.index == best.index), films[0] if films else None)


def _frame_times(name: str, container: Any, options: MediaOptions) -> list[float | None]:
    """
    Decode all frames, and get the second at which each is shown.

    Only what is sampled is kept as arrays, later: an hour of frames does not fit into memory.
    """
    film, times, start = _film(container), [], (container.start_time or 0) / 1e6  # AV_TIME_BASE
    if film is None:
        return []
    check_size(name, (film.codec_context.width, film.codec_context.height), options)
    is_broken = False
    for packet in container.demux(film):
        is_broken = packet.is_corrupt if packet.size else is_broken  # of the last one: the file ends inside it
        for frame in packet.decode():
            check_size(name, (frame.width, frame.height), options)  # a stream may change its size
            times.append(None if frame.time is None else frame.time - start)
            _check_length(name, len(times), options)
    if is_broken:
        raise EOFError("it is cut: its last frame is not whole")
    return times


def _spread(total: int, number: int) -> list[int]:
    """List the numbers of at most `number` of `total` frames, evenly spread."""
    return sorted(set(np.linspace(0, max(total - 1, 0), min(number, max(total, 1))).round().astype(int).tolist()))


def _indices(times: Sequence[float | None], fps: float, wanted: Sequence[int]) -> list[float]:
    """
    Give the wanted frames the numbers from which processors compute their times, by the frame rate.

    >>> _indices([0.0, 0.1, 1.0], 10.0, [0, 1, 2])
    [0, 1, 10.0]
    """
    given = [(index, times[index]) for index in wanted]
    return [
        index if time is None or abs(time * fps - index) <= CLOSE else round(time * fps, 3) for index, time in given
    ]


def _shown_size(frame: Any, ratio: Any) -> tuple[int, int]:
    """Get a frame's width and height when its pixels are square; the larger side grows, so that nothing is lost."""
    if ratio >= 1:
        return max(1, round(frame.width * ratio)), frame.height
    return frame.width, max(1, round(frame.height / ratio))


def _shown(frame: Any, width: int, height: int) -> np.ndarray:
    """Get a frame's pixels `(H, W, 3)` as a player shows them."""
    if (width, height) != (frame.width, frame.height):
        frame = frame.reformat(width=width, height=height)
    if any(component.is_alpha for component in frame.format.components):
        pixels = np.asarray(open_image(Image.fromarray(frame.to_ndarray(format="rgba"))))
    else:
        pixels = frame.to_ndarray(format="rgb24")
    matrix = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    return pixels if matrix is None else _turned(pixels, np.frombuffer(bytes(matrix), np.int32))


def _turned(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turn and mirror pixels by FFmpeg's display matrix: a point goes to `(a x + c y, b x + d y)`."""
    a, b, _, c, d = matrix[:5].astype(np.int64).tolist()
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, a, d = pixels.swapaxes(0, 1), c, b  # (W, H, 3)
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _ask_decoder(decoder: Any, options: MediaOptions) -> tuple[np.ndarray, dict[str, Any]]:
    """Take frames from a decoder of torchcodec, which `datasets` gives for its videos."""
    told = decoder.metadata
    _check_length("video", len(decoder), options)
    check_size("video", (told.width or 0, told.height or 0), options)
    wanted = _spread(len(decoder), options.num_video_frames if len(decoder) else 0)
    batch = decoder.get_frames_at(wanted)
    fps = float(told.average_fps or FPS)
    start = float(getattr(told, "begin_stream_seconds", None) or 0)
    times: list[float | None] = [None] * len(decoder)
    for index, time in zip(wanted, batch.pts_seconds.tolist(), strict=True):
        times[index] = time - start
    frames, metadata = open_video(batch.data, options)
    return frames, {**metadata, **_metadata(len(decoder), fps, _indices(times, fps, wanted))}


def _stacked(name: str, frames: list[np.ndarray]) -> np.ndarray:
    if not frames:
        raise MediumError(f"its {name} has no frames.")
    if len({frame.shape for frame in frames}) > 1:
        raise MediumError(f"the frames of its {name} differ in size; resize them to one size.")
    return np.stack(frames)


def _check_kept(name: str, pixels: int, options: MediaOptions) -> None:
    if pixels > options.max_video_pixels:
        raise MediumError(
            f"its {name} has more than max_video_pixels={options.max_video_pixels} of the config in the frames that "
            "are kept; take fewer or smaller ones, or raise that limit."
        )


def _check_length(name: str, frames: int, options: MediaOptions) -> None:
    if frames > options.max_video_frames:
        raise MediumError(
            f"its {name} has more than max_video_frames={options.max_video_frames} of the config; cut it, or raise "
            "that limit."
        )


def _metadata(total: int, fps: float, indices: Sequence[float]) -> dict[str, Any]:
    return {"total_num_frames": total, "fps": fps, "duration": total / fps, "frames_indices": list(indices)}


def _is_cut(data: bytes) -> bool:
    """Tell whether a container says that more follows than the file holds; FFmpeg would show what is there."""
    if data[:4] == b"RIFF":
        place = 0
        while data[place : place + 4] == b"RIFF":
            size = int.from_bytes(data[place + 4 : place + 8], "little")
            place += 8 + size + size % 2
        return place > len(data) + 1  # the last one may lack its padding
    if data[:4] == b"GIF8":
        return not data.rstrip(b"\0").endswith(b";")
    if data[:4] == b"\x1aE\xdf\xa3":
        return _is_matroska_cut(data)
    for packet, sync in ((188, 0), (192, 4), (204, 0)):  # of transport streams
        if data[sync::packet][:4] == b"GGGG":
            return len(data) % packet != 0
    return data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") and _are_boxes_cut(data)


def _are_boxes_cut(data: bytes) -> bool:
    """Walk the boxes of an MP4 or MOV."""
    place = 0
    while place + 8 <= len(data) and data[place + 4 : place + 8].isalnum():
        size = int.from_bytes(data[place : place + 4], "big")
        if size == 1:
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if size < 8:  # 0: it goes on to the end
            return False
        place += size
    return place > len(data)


def _is_matroska_cut(data: bytes) -> bool:
    """Walk the elements of a Matroska or WebM file; into those that do not tell their size."""
    place = 0
    while place < len(data):
        size_at = place + 9 - data[place].bit_length()
        if size_at >= len(data):
            return True
        length = 9 - data[size_at].bit_length()
        if size_at - place > 4 or length > 8:
            return False  # nothing of the container's
        is_segment = data[place:size_at] == b"\x18S\x80g"
        unknown = (1 << 7 * length) - 1
        size = int.from_bytes(data[size_at : size_at + length], "big") & unknown
        place = size_at + length + (0 if size == unknown else size)
        if is_segment and size != unknown:
            return place > len(data)
    return place > len(data)
