"""What users may pass, and what is refused: always by the index of the input, never in silence."""

from __future__ import annotations

import base64
import io
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from mmemb_r1.modeling.inputs_mmemb_r1 import InputError, to_conversations
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions, open_image
from mmemb_r1.modeling.rendering_mmemb_r1 import render, truncate_conversation, truncate_text
from mmemb_r1.modeling.videos_mmemb_r1 import open_video
from mmemb_r1.tiny import build_tiny_vlm

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def picture(draw: Callable[..., Image.Image]) -> Image.Image:
    return draw(0, 6, 4)


@pytest.fixture
def path(picture: Image.Image, tmp_path: Path) -> Path:
    file = tmp_path / "a picture.PNG"
    picture.save(file)
    return file


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An mp4 of 20 frames at 10 frames per second; frame i has the grey level 10 i."""
    file = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for index in range(20):
            pixels = np.full((64, 64, 3), 10 * index, dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file


def parts(value: Any, **options: Any) -> list[dict[str, Any]]:
    """The parts of the user's turn."""
    return to_conversations([value], **options)[0][-1]["content"]


def assert_same(image: Image.Image, expected: Image.Image) -> None:
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(expected.convert("RGB")))


# --- pictures ---


def test_every_way_to_pass_a_picture(picture, path):
    data = path.read_bytes()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    escaped = "data:image/png," + "".join(f"%{byte:02x}" for byte in data)
    pixels = np.asarray(picture)
    undecoded = [{"bytes": data, "path": None}, {"bytes": None, "path": str(path)}]
    for source in (picture, path, str(path), data, bytearray(data), url, escaped, pixels, *undecoded):
        assert_same(open_image(source), picture)
        (part,) = parts({"image": source})
        assert part["type"] == "image"
        assert_same(part["image"], picture)
    for source in (picture, str(path), data, url, pixels):
        assert_same(parts(source)[0]["image"], picture)


def test_home_folders(picture, path, monkeypatch):
    monkeypatch.setenv("HOME", str(path.parent))
    assert_same(parts("~/a picture.PNG")[0]["image"], picture)
    assert_same(parts({"image": "~/a picture.PNG"})[0]["image"], picture)


def test_pictures_are_turned_upright():
    image = Image.new("RGB", (4, 2), "blue")
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = open_image(encoded(image, exif=exif))
    assert turned.size == (2, 4)
    assert turned.getpixel((1, 0)) == RED
    assert turned.getpixel((0, 0)) == BLUE


def test_transparency_is_white():
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 255, 0))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)
    keyed = Image.new("RGB", (2, 1), "red")
    keyed.putpixel((1, 0), BLUE)
    for source in (
        rgba,
        np.asarray(rgba),
        encoded(rgba),
        encoded(palette, transparency=1),
        encoded(keyed, transparency=BLUE),
        rgba.convert("RGBa"),
    ):
        image = open_image(source)
        assert [image.getpixel((0, 0)), image.getpixel((1, 0))] == [RED, WHITE]
    half = open_image(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))
    assert half.getpixel((0, 0)) == (127, 127, 127)
    assert open_image(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0)) == WHITE


def test_other_modes():
    assert_same(open_image(Image.new("L", (2, 2), 77)), Image.new("RGB", (2, 2), (77, 77, 77)))
    assert_same(open_image(Image.new("1", (2, 2), 1)), Image.new("RGB", (2, 2), "white"))
    assert_same(open_image(Image.new("P", (2, 2), 0)), Image.new("P", (2, 2), 0).convert("RGB"))
    assert_same(open_image(np.full((2, 3), 9, dtype=np.uint8)), Image.new("RGB", (3, 2), (9, 9, 9)))
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert_same(
        open_image(encoded(cmyk, "JPEG", quality=100)), Image.open(io.BytesIO(encoded(cmyk, "JPEG", quality=100)))
    )


def test_sixteen_bits_keep_their_shades():
    levels = np.linspace(0, 65535, 16, dtype=np.uint16).reshape(4, 4)
    deep = Image.fromarray(levels)
    for source in (deep, encoded(deep), encoded(deep, "TIFF")):
        assert np.array_equal(np.asarray(open_image(source))[..., 0], levels >> 8)


def test_the_callers_picture_is_left_alone(picture):
    before = picture.copy()
    open_image(picture).putpixel((0, 0), RED)
    transparent = Image.new("RGBA", (2, 2), (1, 2, 3, 0))
    open_image(transparent)
    assert transparent.mode == "RGBA"
    assert picture.tobytes() == before.tobytes()


BAD_PICTURES = {
    "corrupt": (b"not a picture", "its image of 13 bytes can't be read"),
    "no bytes": (b"", "its image of 0 bytes can't be read"),
    "missing": ("nowhere/at/all.jpg", "there is no image file 'nowhere/at/all.jpg'"),
    "a folder": (".", "there is no image file '.'"),
    "too long a name": ("x" * 5000, "there is no image file 'xxx"),
    "web": ("https://example.org/a.png", "is a web address; nothing is downloaded"),
    "base64": ("data:image/png;base64,@@@@", "its data URL 'data:image/png;base64,@@@@' is not valid base64"),
    "data URL": ("data:image/png;base64,AAAA", "its image .* can't be read"),
    "type": (3, "its image is of type int; allowed: a PIL image or array, a path, bytes or a data URL"),
    "none inside": ([None], "its image is of type NoneType"),
    "undecoded none": ({"bytes": None, "path": None}, "its image is of type NoneType"),
    "float array": (np.zeros((2, 2, 3)), r"an array of float64 with shape \(2, 2, 3\); allowed: uint8"),
    "two channels": (np.zeros((8, 8, 2), np.uint8), r"an array of uint8 with shape \(8, 8, 2\)"),
    "four dimensions": (np.zeros((1, 2, 2, 3), np.uint8), r"with shape \(1, 2, 2, 3\)"),
    "no pixels": (np.zeros((0, 4, 3), np.uint8), r"its image has no pixels \(size \(4, 0\)\)"),
    "32-bit": (Image.new("I", (2, 2)), r"32-bit pixels \(mode I\) of unknown range"),
    "float": (Image.new("F", (2, 2)), r"32-bit pixels \(mode F\)"),
}


@pytest.mark.parametrize("kind", list(BAD_PICTURES))
def test_pictures_that_cannot_be_opened(kind):
    source, message = BAD_PICTURES[kind]
    with pytest.raises(InputError, match=f"^Input 1 can't be embedded: .*{message}"):
        to_conversations(["fine", {"image": source}])


def test_truncated_pictures(draw):
    data = encoded(draw(0, 64, 64), "JPEG")[:-400]
    for source in (data, Image.open(io.BytesIO(data))):
        with pytest.raises(InputError, match="Input 0 .* can't be read .*truncated"):
            to_conversations([{"image": source}])


def test_a_picture_too_large_to_be_honest(monkeypatch, draw):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="can't be read .*decompression bomb"):
        to_conversations([{"image": encoded(draw(0, 64, 64))}])


def test_pictures_beyond_the_limit_are_refused_before_they_are_decoded(draw, monkeypatch):
    media = MediaOptions(max_image_pixels=64 * 64)
    bomb = encoded(Image.new("1", (64, 65)))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("it was decoded"))
    message = "Input 0 .* its image of 72 bytes has 64 x 65 pixels, more than max_image_pixels=4096 of the conf"
    with pytest.raises(InputError, match=message):
        to_conversations([{"image": bomb}], media=media)
    with pytest.raises(InputError, match=message):
        to_conversations([{"role": "user", "content": [{"type": "image", "image": bomb}]}], media=media)


def test_pictures_at_the_limit_are_fine(draw):
    assert_same(open_image(draw(0, 64, 64), MediaOptions(max_image_pixels=64 * 64)), draw(0, 64, 64))


# --- strings and dicts ---


@pytest.mark.parametrize(
    "text",
    [
        "What is this?",
        "see flag.png",
        "data:text/plain,hello",
        "https://example.org",
        " x ",
        "a\n\nb",
        "png",
        "user.name",
    ],
)
def test_strings_are_text(text):
    assert parts(text) == parts({"text": text}) == [{"type": "text", "text": text}]


def test_strings_that_look_like_files(picture, path, film):
    assert parts(str(film))[0]["type"] == "video"
    assert parts({"text": str(path)}) == [{"type": "text", "text": str(path)}]
    for name in ("flag.png", "/no/where/FLAG.JPEG", "https://example.org/flag.webp", "x" * 5000 + ".png"):
        with pytest.raises(InputError, match=r"looks like the path of a file \(image\), but there is no such file"):
            to_conversations([name])
        assert parts({"text": name})[0]["type"] == "text"
    with pytest.raises(InputError, match=r"looks like the path of a file \(video\).*pass \{\"text\": ...\}"):
        to_conversations(["film.mp4"])


def test_order_of_the_parts(picture, film):
    value = {"text": ["one", " ", "two"], "image": [picture, picture], "video": str(film)}
    assert [part["type"] for part in parts(value)] == ["image", "image", "video", "text"]
    assert parts(value)[-1]["text"] == "one\ntwo"
    assert [part["type"] for part in parts({"text": " ", "image": (picture,), "video": None})] == ["image"]


def test_instructions():
    own, default = "Find the capital.", "Represent this."
    system = {"role": "system", "content": [{"type": "text", "text": own}]}
    message = [{"role": "user", "content": "x"}]
    assert to_conversations([{"text": "x", "instruction": own}])[0][0] == system
    assert to_conversations(["x"], instruction=own)[0][0] == system
    assert to_conversations([{"text": "x", "instruction": own}], instruction=default)[0][0] == system
    assert to_conversations([message], instruction=own)[0][0] == system
    chat = [{"role": "system", "content": own}, *message]
    assert to_conversations([chat], instruction=default)[0] == [system, {"role": "user", "content": parts("x")}]
    blank = [{"role": "system", "content": " \n"}, *message]
    assert to_conversations([blank])[0] == to_conversations([message])[0]
    assert to_conversations([{"text": "x", "instruction": " "}], instruction=default)[0][0]["content"] == parts(
        default
    )
    for nothing in (None, "", " \n"):
        assert len(to_conversations([{"text": "x", "instruction": nothing}], instruction=nothing)[0]) == 1


def test_chat_messages(picture, path):
    message = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "image": str(path)}]}
    for value in (message, [message], (message,)):
        ((opened,),) = to_conversations([value])
        assert opened["role"] == "user"
        assert [part["type"] for part in opened["content"]] == ["text", "image"]
        assert_same(opened["content"][1]["image"], picture)
    assert message["content"][1]["image"] == str(path)
    (kept,) = message["content"][:1]  # tables give every row the keys of all
    row = {"role": "user", "content": [{**kept, "image": None}], "name": None}
    assert to_conversations([row])[0][0]["content"] == [kept]


BAD_INPUTS: dict[str, tuple[Any, str]] = {
    "empty string": ("", "it is empty. Pass some text, an image or a video"),
    "whitespace": (" \n\t", "it is empty"),
    "empty dict": ({}, "it is empty"),
    "only an instruction": ({"instruction": "x"}, "it is empty"),
    "empty values": ({"text": "", "image": [], "video": []}, "it is empty"),
    "none values": ({"text": None, "image": None}, "it is empty"),
    "unknown key": ({"txt": "a"}, "unknown key 'txt'; allowed keys: text, image, video, instruction"),
    "number": (3, "it is of type int; allowed: a string, a PIL image, an array, a dict"),
    "none": (None, "it is of type NoneType; allowed"),
    "generator": ((x for x in "ab"), "it is of type generator; allowed"),
    "text of a wrong type": ({"text": 3}, "its text is of type int; allowed: a string"),
    "instruction of a wrong type": (
        {"text": "a", "instruction": ["b"]},
        "its text is of type list; allowed: a string",
    ),
    "half a character": ("a \ud800 b", "surrogates not allowed"),
    "empty list": ([], "it is an empty list; allowed"),
    "list of strings": (["a", "b"], "a list that holds str; allowed in a list: chat messages"),
    "list of pictures": ([Image.new("RGB", (2, 2))], "a list that holds Image; allowed in a list: chat messages"),
    "message without content": ([{"role": "user"}], "a list that holds dict; allowed in a list: chat messages"),
    "unknown role": (
        [{"role": "<|embed|>", "content": "a"}],
        r"the role '<\|embed\|>'; allowed: system, user, assistant",
    ),
    "content none": ([{"role": "user", "content": None}], "content is of type NoneType; allowed: a string or a list"),
    "content empty": ([{"role": "user", "content": []}], "it is empty"),
    "content blank": ([{"role": "user", "content": " "}], "it is empty"),
    "only a system turn": ([{"role": "system", "content": "a"}], "it is empty"),
    "part of an unknown type": (
        [{"role": "user", "content": [{"type": "audio", "audio": "a"}]}],
        "a message holds .*audio",
    ),
    "part without value": ([{"role": "user", "content": [{"type": "text"}]}], "a message holds .*'type': 'text'"),
    "part with other value": (
        [{"role": "user", "content": [{"type": "image", "url": "a.png"}]}],
        "a message holds .*url",
    ),
    "part not a dict": ([{"role": "user", "content": ["a"]}], "a message holds 'a'; allowed"),
    "part text of a wrong type": (
        [{"role": "user", "content": [{"type": "text", "text": 1}]}],
        "its text is of type int",
    ),
    "part with an option": (
        [{"role": "user", "content": [{"type": "text", "text": "a", "max_pixels": 9}]}],
        "a part of the type 'text' has the key 'max_pixels', which is not used; allowed: type, text",
    ),
    "part of two kinds": (
        [{"role": "user", "content": [{"type": "text", "text": "a", "image": "a.png"}]}],
        "has the key 'image', which is not used",
    ),
    "message with tool calls": (
        [{"role": "user", "content": "a", "tool_calls": []}],
        "a message has the key 'tool_calls', which is not used; allowed: role, content",
    ),
    "message with an instruction": ({"role": "user", "content": "a", "instruction": "b"}, "has the key 'instruction'"),
    "message with reasoning": ([{"role": "assistant", "content": "a", "reasoning_content": "b"}], "reasoning_content"),
    "sound": ({"array": np.zeros(9), "sampling_rate": 16000}, "unknown key 'array'"),
    "part missing image": (
        [{"role": "user", "content": [{"type": "image", "image": "no.png"}]}],
        "there is no image file",
    ),
}


@pytest.mark.parametrize("kind", list(BAD_INPUTS))
def test_inputs_that_cannot_be_embedded(kind):
    value, message = BAD_INPUTS[kind]
    with pytest.raises(InputError, match=f"^Input 2 can't be embedded: .*{message}") as caught:
        to_conversations(["fine", {"text": "fine"}, value])
    assert caught.value.index == 2
    assert caught.value.reason in str(caught.value)


def test_unreadable_files(path, monkeypatch):
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match="Input 1 can't be embedded: .*Permission denied"):
        to_conversations(["fine", {"image": path}])


def test_errors_travel_between_processes():
    error = InputError(3, "it is empty.", value="x")
    again = pickle.loads(pickle.dumps(error))
    assert (again.index, again.reason, again.value, str(again)) == (3, error.reason, None, str(error))
    assert str(error) == "Input 3 can't be embedded: it is empty. It was: 'x'"


# --- videos ---


@pytest.mark.parametrize("number", [1, 4, 20, 50])
def test_frames_are_spread_evenly(film, number):
    frames, metadata = open_video(str(film), MediaOptions(number))
    indices = metadata["frames_indices"]
    assert len(frames) == len(indices) == min(number, 20)
    assert indices == sorted(set(indices))
    assert indices == np.linspace(0, 19, min(number, 20)).round().astype(int).tolist()
    levels = frames.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(levels, 10 * np.array(indices), atol=6)
    assert (metadata["total_num_frames"], metadata["fps"], metadata["duration"]) == (20, 10.0, 2.0)
    assert (frames.shape[1:], frames.dtype) == ((64, 64, 3), np.uint8)


def test_every_way_to_pass_a_video(film, draw, tmp_path):
    expected, _ = open_video(film, MediaOptions(4))
    url = "data:video/mp4;base64," + base64.b64encode(film.read_bytes()).decode()
    for source in (film, str(film), film.read_bytes(), url):
        (part,) = parts({"video": source}, media=MediaOptions(4))
        assert np.array_equal(part["video"], expected)
    assert np.array_equal(parts(url, media=MediaOptions(4))[0]["video"], expected)
    frames = [draw(seed, 8, 8) for seed in range(12)]
    names = [tmp_path / f"{index}.png" for index in range(12)]
    for frame, name in zip(frames, names, strict=True):
        frame.save(name)
    arrays = [np.asarray(frame) for frame in frames]
    stored = [{"bytes": name.read_bytes(), "path": None} for name in names]  # as `datasets` keeps pictures
    sources = (frames, tuple(frames), arrays, np.stack(arrays), names, [str(name) for name in names], stored)
    for source in sources:
        (part,) = parts({"video": source})
        assert np.array_equal(part["video"], np.stack(arrays))  # frames are all kept
        assert part["metadata"]["frames_indices"] == list(range(12))
    assert len(parts({"video": [film, str(film)]})) == 2
    assert len(parts({"video": [frames, np.stack(arrays)]})) == 2


BAD_VIDEOS: dict[str, tuple[Any, str]] = {
    "corrupt": (b"not a video", "its video of 11 bytes can't be read"),
    "missing": ("no/film.mp4", "there is no video file 'no/film.mp4'"),
    "web": ("https://example.org/film.mp4", "is a web address; .* Download the video"),
    "type": (3, "its video is of type int; allowed: a list of frames or an array, a path"),
    "no frames": (np.zeros((0, 4, 4, 3), np.uint8), "its video has no frames"),
    "no frames in a list": ([[]], "its video has no frames"),
    "sizes": ([Image.new("RGB", (2, 2)), Image.new("RGB", (3, 2))], "the frames of its video differ in size"),
    "float frames": (np.zeros((2, 4, 4, 3)), "an array of float64"),
}


@pytest.mark.parametrize("kind", list(BAD_VIDEOS))
def test_videos_that_cannot_be_opened(kind):
    source, message = BAD_VIDEOS[kind]
    with pytest.raises(InputError, match=f"^Input 1 can't be embedded: .*{message}"):
        to_conversations(["fine", {"video": source}])


def test_films_beyond_the_limits(film):
    large = MediaOptions(max_image_pixels=64 * 64 - 1)
    long = MediaOptions(max_video_frames=19)
    with pytest.raises(InputError, match="its video .*film.mp4' has 64 x 64 pixels, more than max_image_pixels=4095"):
        to_conversations([{"video": film}], media=large)
    with pytest.raises(InputError, match="its video .*film.mp4' has more than max_video_frames=19 of the config; cut"):
        to_conversations([{"video": film}], media=long)
    with pytest.raises(InputError, match="its video has more than max_video_frames=19 of the config; cut it"):
        to_conversations([{"video": np.zeros((20, 4, 4, 3), np.uint8)}], media=long)
    frames, _ = open_video(film, MediaOptions(num_video_frames=2, max_image_pixels=64 * 64, max_video_frames=20))
    assert len(frames) == 2


PLAYLISTS = {
    "SDP": (
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        b"m=video 45678 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    ),
    "concat": b"ffconcat version 1.0\nfile 'film.mp4'\n",
    "HLS": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfilm.mp4\n#EXT-X-ENDLIST\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_films_that_name_other_files_or_addresses(kind, film, monkeypatch):
    """Nothing but the bytes themselves is read."""
    monkeypatch.chdir(film.parent)
    with pytest.raises(InputError, match=f"its video of {len(PLAYLISTS[kind])} bytes can't be read"):
        to_conversations([{"video": PLAYLISTS[kind]}])


def test_pictures_that_are_programs(monkeypatch):
    """PIL would call Ghostscript for this one."""
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kwargs: pytest.fail("a program was called"))
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    with pytest.raises(InputError, match="it is in none of the formats PNG, JPEG, "):
        to_conversations([{"image": program}])


def test_what_is_kept_of_a_video_is_limited(film):
    media = MediaOptions(num_video_frames=4, max_video_pixels=4 * 64 * 64)
    assert len(open_video(film, media)[0]) == 4
    with pytest.raises(InputError, match="more than max_video_pixels=16384 of the config in the frames that are kept"):
        to_conversations([{"video": film}], media=MediaOptions(num_video_frames=5, max_video_pixels=4 * 64 * 64))
    frames = [np.zeros((64, 64, 3), np.uint8)] * 5
    with pytest.raises(InputError, match="its video has more than max_video_pixels=16384"):
        to_conversations([{"video": frames}], media=media)


def test_broken_films(film, tmp_path):
    with pytest.raises(InputError, match="its video .* can't be read"):
        to_conversations([{"video": film.read_bytes()[:200]}])
    silent = tmp_path / "sound.mp4"
    with av.open(str(silent), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    with pytest.raises(InputError, match="its video .*sound.mp4.* has no frames"):
        to_conversations([{"video": silent}])


def test_without_pyav(film, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match="videos need PyAV: pip install av"):
        to_conversations([{"video": film}])


# --- rendering ---


def test_a_film_is_embedded(tiny, film):
    value = {"video": film, "text": "What happens?"}
    if not tiny.takes_videos:  # their processors have no part for videos; real templates would drop them in silence
        with pytest.raises(InputError, match="Input 1 .*this model's backbone takes no videos; pass frames as images"):
            tiny.batch(["fine", value])
        return
    short, long = (to_conversations([value], media=MediaOptions(number)) for number in (2, 8))
    one, other = (render(tiny.processor, chats) for chats in (short, long))
    assert one["input_ids"].shape[1] < other["input_ids"].shape[1]
    with torch.no_grad():
        vectors = [tiny.model.embed(**batch, reasoning="never").embeddings for batch in (one, other)]
    assert (vectors[0] - vectors[1]).abs().max() > 1e-3


def test_smolvlm_refuses_images_beside_videos(draw, clips):
    """Its processor writes both to `pixel_values`, and the model would lose the images."""
    _, processor = build_tiny_vlm("smolvlm")
    with pytest.raises(InputError, match="Input 1 .*either images or videos in one input; pass frames as images"):
        render(processor, to_conversations(["fine", {**clips[0], "image": draw(0)}]))


@pytest.mark.parametrize("family", ["smolvlm", "internvl"])
def test_videos_of_different_length_are_refused_in_one_input(family):
    """SmolVLM's processor writes the longest one's number of frames into all prompts, InternVL's can't stack them."""
    clips = [np.zeros((frames, 64, 64, 3), np.uint8) for frames in (2, 4)]
    _, processor = build_tiny_vlm(family)
    with pytest.raises(InputError, match=r"Input 0 .*of equally many frames in one input, these have \[2, 4\]"):
        render(processor, to_conversations([{"video": clips}]))


def test_the_outcome_does_not_depend_on_neighbours(tiny, draw):
    """Media of all kinds and sizes in one batch, also those that a processor can't take together."""

    def noise(*shape: int) -> np.ndarray:
        return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)

    inputs = [draw(1, 40, 30), "a text", {"image": [draw(2, 64, 64), draw(3, 3, 50)]}, draw(4, 3, 3), draw(5, 50, 1)]
    if tiny.takes_videos:
        shapes = [(8, 30, 30), (4, 3, 60), (1, 40, 50), (4, 1, 60), (3, 3, 3), (2, 60, 1)]
        videos = [{"video": noise(*shape, 3)} for shape in shapes]
        inputs = [value for pair in zip(videos, [*inputs, {"video": noise(2, 64, 64, 3), "text": "b"}], strict=True)
                  for value in pair]  # fmt: skip
    together = tiny.embed(inputs, reasoning="never").embeddings
    alone = torch.cat([tiny.embed([value], reasoning="never").embeddings for value in inputs])
    assert (together - alone).abs().max() < 1e-4


def test_an_instruction_has_a_limit(qwen):
    for value in ({"text": "a", "instruction": "word " * 20_000}, [
        {"role": "system", "content": "x" * 10**6}, {"role": "user", "content": "a"},
    ]):  # fmt: skip
        with pytest.raises(
            InputError, match="Input 1 .*its instruction has .* characters, .* 8192 tokens.*the prompt"
        ):
            qwen.batch(["fine", value])
    assert qwen.batch([{"text": "a", "instruction": "word " * 1000}])["input_ids"].shape[1] > 1000


def test_what_a_processor_refuses_is_named(qwen, draw):
    with pytest.raises(InputError, match="Input 2 can't be embedded: .*aspect ratio"):
        qwen.batch(["fine", draw(0), draw(0, 900, 2), draw(1)])


def test_inputs_are_not_changed(tiny, draw):
    image = draw(0)
    chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "<think>"}]}]
    conversations = to_conversations([chat])
    first = render(tiny.processor, conversations, 5)
    assert chat[0]["content"][0]["image"] is image
    assert conversations[0][0]["content"][1]["text"] == "<think>"
    assert torch.equal(render(tiny.processor, conversations, 5)["input_ids"], first["input_ids"])


def test_long_text_is_cut_and_nothing_else(tiny, draw):
    images = [draw(0), draw(1)]
    config, tokenizer = tiny.model.config, tiny.processor.tokenizer
    long = {"text": "capital of Peru " * 400, "image": images, "instruction": "Describe the picture in one word."}
    budget = 10
    cut = render(tiny.processor, to_conversations([long]), budget)["input_ids"][0]
    none = tiny.batch([{**long, "text": "x"}])["input_ids"][0]
    assert budget - 3 <= len(cut) - len(none) < budget  # a word may merge with the template's newline before it
    assert (cut == tiny.model.vlm.config.image_token_id).sum() == (none == tiny.model.vlm.config.image_token_id).sum()
    assert (cut[-1], (cut == config.embed_token_id).sum()) == (config.embed_token_id, 1)
    assert "Describe the picture in one word." in tokenizer.decode(cut)
    assert "capital of Peru" in tokenizer.decode(cut)


def test_the_budget_is_shared_by_all_turns_but_the_systems(qwen):
    tokenizer = qwen.processor.tokenizer
    text = {"type": "text", "text": "0123456789"}
    roles = ("system", "user", "assistant", "user")
    cut = truncate_conversation(tokenizer, [{"role": role, "content": [text]} for role in roles], 15)
    assert [message["content"][0]["text"] for message in cut] == ["0123456789", "0123456789", "01234", ""]
    assert text["text"] == "0123456789"


@pytest.mark.parametrize(
    "text", ["capital of Peru " * 20, "Grüße aus 東京 🦙🇵🇪 " * 8, "<think>|<|embed|>" * 9, "\n \t" * 30]
)
def test_cut_text_is_a_beginning_within_the_budget(qwen, text):
    tokenizer = qwen.processor.tokenizer
    whole = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    for budget in range(1, whole + 2):
        cut = truncate_text(tokenizer, text, budget)
        assert text.startswith(cut)
        count = len(tokenizer(cut, add_special_tokens=False)["input_ids"])
        assert budget - 4 <= count <= budget or cut == text
    assert truncate_text(tokenizer, text, whole) == text


def test_control_strings_count_as_the_text_they_are(qwen):
    """As control tokens a hundred of them would be a hundred tokens; as text they are many more."""
    plain = qwen.batch(["x"])["input_ids"].shape[1]
    ids = render(qwen.processor, to_conversations(["<|embed|>" * 100]), 100)["input_ids"]
    assert plain + 90 <= ids.shape[1] <= plain + 100
