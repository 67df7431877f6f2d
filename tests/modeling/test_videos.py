"""Films are seen as a player shows them, with the times that their container tells; cut ones are refused."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mmemb_r1.content import content_key
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError, to_conversations
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions, MediumError
from mmemb_r1.modeling.videos_mmemb_r1 import open_video

HEIGHT, WIDTH = 48, 64
NOISE = np.random.default_rng(0).integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)


def frame(index: int) -> np.ndarray:
    """Red above, blue on the left, and a grey that counts."""
    pixels = np.full((HEIGHT, WIDTH, 3), 10 * index, np.uint8)
    pixels[: HEIGHT // 4], pixels[:, : WIDTH // 8] = (255, 0, 0), (0, 0, 255)
    return pixels


def film(
    fmt: str = "mp4",
    codec: str = "mpeg4",
    times: Any = range(20),
    ratio: Fraction | None = None,
    still: bool = False,
    **options: str,
) -> bytes:
    """A film whose frames are shown at these tenths of a second; with a still before it, if that is asked for."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=fmt, options=options) as container:
        if still:
            cover = container.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = 32, 16, "yuvj420p"
            shown = av.VideoFrame.from_ndarray(np.full((16, 32, 3), 200, np.uint8), format="rgb24")
        stream = container.add_stream(codec, rate=10 if codec != "mpeg2video" else 25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if ratio is not None:
            stream.codec_context.sample_aspect_ratio = ratio
        if still:
            shown.pts = 0
            for packet in [*cover.encode(shown), *cover.encode()]:
                container.mux(packet)
        for index, time in enumerate(times):
            pixels = av.VideoFrame.from_ndarray(frame(index), format="rgb24")
            if codec != "mpeg2video":
                pixels.pts, pixels.time_base = time, Fraction(1, 10)
            for packet in stream.encode(pixels):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return buffer.getvalue()


def with_matrix(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """The same film with another display matrix in its track header, as phones write it."""
    one, place = 0x10000, data.index(b"tkhd") + 44
    return (
        data[:place] + struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30) + data[place + 36 :]
    )


@pytest.mark.parametrize(
    ("matrix", "turn"),
    {
        (0, 1, -1, 0): lambda x: np.rot90(x, 3, (1, 2)),
        (-1, 0, 0, -1): lambda x: np.rot90(x, 2, (1, 2)),
        (0, -1, 1, 0): lambda x: np.rot90(x, 1, (1, 2)),
        (-1, 0, 0, 1): lambda x: x[:, :, ::-1],
        (1, 0, 0, -1): lambda x: x[:, ::-1],
        (0, 1, 1, 0): lambda x: x.swapaxes(1, 2),
    }.items(),
)
def test_films_are_turned_and_mirrored_as_they_say(matrix, turn):
    plain = film()
    assert np.array_equal(open_video(with_matrix(plain, *matrix))[0], turn(open_video(plain)[0]))


@pytest.mark.parametrize(("ratio", "shape"), [((2, 1), (48, 128)), ((1, 2), (96, 64)), ((4, 3), (48, 85))])
def test_pixels_that_are_not_square(ratio, shape):
    for fmt in ("mp4", "matroska"):
        frames, _ = open_video(film(fmt, ratio=Fraction(*ratio)))
        assert frames.shape[1:3] == shape
        assert frames[0, -1, -1].max() < 20 and frames[0, 2, -2, 0] > 200
    media = MediaOptions(max_image_pixels=HEIGHT * WIDTH)
    with pytest.raises(MediumError, match="more than max_image_pixels=3072"):
        open_video(film(ratio=Fraction(*ratio)), media)


def test_a_still_before_the_film_is_not_the_film():
    frames, metadata = open_video(film("matroska", still=True))
    assert frames.shape[1:3] == (HEIGHT, WIDTH)
    assert metadata["total_num_frames"] == 20


@pytest.mark.parametrize("fmt", ["mp4", "matroska"])
def test_times_are_read(fmt):
    """Processors compute a frame's time from its number and the rate."""
    times = [0, 1, 2, 20, 21, 60]
    for late in (0, 50):
        _, told = open_video(film(fmt, times=[late + time for time in times]))
        seconds = [number / told["fps"] for number in told["frames_indices"]]
        assert np.allclose(seconds, [time / 10 for time in times], atol=0.02)
    assert open_video(film(fmt))[1]["frames_indices"] == [0, 3, 5, 8, 11, 14, 16, 19]


CONTAINERS = {
    "mp4": ("mp4", "mpeg4", {"movflags": "frag_keyframe+empty_moov"}),
    "mp4, index last": ("mp4", "mpeg4", {}),
    "mov": ("mov", "mpeg4", {}),
    "3gp": ("3gp", "mpeg4", {}),
    "mkv": ("matroska", "mpeg4", {}),
    "mkv, live": ("matroska", "mpeg4", {"live": "1"}),
    "webm": ("webm", "libvpx", {}),
    "avi": ("avi", "mpeg4", {}),
    "ts": ("mpegts", "mpeg2video", {}),
    "m2ts": ("mpegts", "mpeg2video", {"mpegts_m2ts_mode": "1"}),
    "flv": ("flv", "flv", {}),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_cut_films(name):
    fmt, codec, options = CONTAINERS[name]
    whole = film(fmt, codec, **options)
    assert open_video(whole)[1]["total_num_frames"] == 20
    for cut in (7, len(whole) // 20 | 1, len(whole) // 5 | 1, len(whole) // 2 | 1):
        with pytest.raises(MediumError, match="can't be read"):
            open_video(whole[:-cut])


def test_a_fast_start_film_that_ends_early():
    """Its index comes first, and tells of frames that are not there."""
    data = film()
    place, boxes = 0, {}
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        boxes[data[place + 4 : place + 8]] = data[place : place + size]
        place += size
    index = bytearray(boxes[b"moov"])
    at = index.index(b"stco") + 12  # the one chunk moves back by the index's length
    index[at : at + 4] = (int.from_bytes(index[at : at + 4], "big") + len(index)).to_bytes(4, "big")
    fast = boxes[b"ftyp"] + bytes(index) + boxes.get(b"free", b"") + boxes[b"mdat"]
    assert np.array_equal(open_video(fast)[0], open_video(data)[0])
    for cut in (1, 40, len(boxes[b"mdat"]) // 2):
        with pytest.raises(MediumError, match="it is cut: its container tells of more than there is"):
            open_video(fast[:-cut])


def test_cut_animations():
    images = [Image.fromarray(pixels) for pixels in NOISE]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=[100, 100, 900, 100, 100, 100])
    data = buffer.getvalue()
    frames, told = open_video(data)
    assert len(frames) == 6
    assert np.allclose([n / told["fps"] for n in told["frames_indices"]], [0, 0.1, 0.2, 1.1, 1.2, 1.3], atol=0.02)
    for cut in (1, len(data) // 5, len(data) // 2):
        with pytest.raises(MediumError, match="it is cut"):
            open_video(data[:-cut])


# --- what may hold a video ---


class Decoder:
    """As much of torchcodec's VideoDecoder as is asked of it."""

    metadata = SimpleNamespace(width=7, height=9, average_fps=10.0, begin_stream_seconds=1.0)

    def __len__(self) -> int:
        return len(NOISE)

    def get_frames_at(self, indices: list[int]) -> Any:
        data = torch.from_numpy(NOISE[indices]).permute(0, 3, 1, 2)
        return SimpleNamespace(data=data, pts_seconds=torch.tensor([1 + index / 10 for index in indices]))


def test_every_way_to_hold_a_video_in_memory():
    first = NOISE.transpose(0, 3, 1, 2)
    for source in (NOISE, first, torch.from_numpy(NOISE), torch.from_numpy(first.copy())):
        told = {"array": source, "video_metadata": {"fps": 10.0, "frames_indices": list(range(6))}}
        for value in (source, {"video": source}, told, {"video": told}, {"video": list(source)}):
            (part,) = to_conversations([value])[0][0]["content"]
            assert np.array_equal(part["video"], NOISE)
            is_told = isinstance(value.get("video", value) if isinstance(value, dict) else value, dict)
            assert part["metadata"]["fps"] == (10.0 if is_told else 24.0)
            assert content_key(value) == content_key(told if is_told else {"video": NOISE})
    for value in (Decoder(), {"video": Decoder()}):
        (part,) = to_conversations([value], media=MediaOptions(3))[0][0]["content"]
        assert np.array_equal(part["video"], NOISE[[0, 2, 5]])
        assert part["metadata"] == {"fps": 10.0, "total_num_frames": 6, "duration": 0.6, "frames_indices": [0, 2, 5]}
        assert content_key(value) == content_key({"video": Decoder()})


def test_files_of_datasets_and_open_ones():
    data = film()
    expected, _ = open_video(data)
    for source in (io.BytesIO(data), {"bytes": data, "path": "a.mp4"}, bytearray(data)):
        (part,) = to_conversations([{"video": source}])[0][0]["content"]
        assert np.array_equal(part["video"], expected)
        assert content_key({"video": source}) == content_key({"video": data})
    assert len(to_conversations([{"video": [{"bytes": data, "path": "a.mp4"}] * 2}])[0][0]["content"]) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 0, 4, 3), np.uint8), "has no pixels"),
        (np.zeros((3, 4, 4), np.uint8), r"an array with shape \(3, 4, 4\); allowed: \(T, H, W, C\)"),
        ({"array": NOISE, "video_metadata": {"frames_indices": [0]}}, "6 frames, but 1 frames_indices"),
        ({"array": NOISE[:0], "video_metadata": None}, "its video has no frames"),
        (torch.zeros(2, 3, 4, 4), "an array of float32"),
    ],
)
def test_videos_in_memory_that_are_none(source, message):
    with pytest.raises(InputError, match=f"Input 1 .*{message}"):
        to_conversations(["fine", {"video": source}])
