from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.training.rationales.openai_messages import chat_messages, read_completions
from mmemb_r1.training.rationales.prompting import Style
from mmemb_r1.training.rationales.worker import Failure, Rationale, RationaleRequest

THINKING = Style("t", "Think.", thinking=True)
INSTRUCT = Style("i", "Explain.", thinking=False)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8))


def messages(image_format: str = "png", **fields: Any) -> list[dict]:
    return chat_messages(INSTRUCT, RationaleRequest(fields, "query", (0,)), 4, image_format)


def sent_files(**fields: Any) -> list[bytes]:
    """The files in the user's turn."""
    parts = messages(**fields)[1]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert all(url.startswith("data:image/") for url in urls)
    return [base64.b64decode(url.partition(";base64,")[2]) for url in urls]


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=image_format, **options)
    return file.getvalue()


def test_turns_without_pictures_are_plain_strings() -> None:
    assert messages(text="Lima", instruction="Find it.") == [
        {"role": "system", "content": "Explain."},
        {"role": "user", "content": "Task: Find it.\nLima"},
    ]


def test_pictures_are_parts_before_the_text() -> None:
    content = messages(text="Which?", image=[NOISE, NOISE])[1]["content"]
    assert [part["type"] for part in content] == ["image_url", "image_url", "text"]


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_file_that_needs_no_change_is_sent_as_it_is(tmp_path: Path, image_format: str, mode: str) -> None:
    data = encoded(NOISE.convert(mode), image_format)
    path = tmp_path / "picture"
    path.write_bytes(data)
    for source in (data, path, str(path), {"bytes": data, "path": None}, {"bytes": None, "path": str(path)}):
        if image_format == "WEBP" and mode == "L":  # WebP has no grey
            continue
        assert sent_files(image=source) == [data]
    url = messages(image=data)[1]["content"][0]["image_url"]["url"]
    assert url.startswith(f"data:image/{image_format.lower()};base64,")


def test_a_decoded_picture_is_sent_without_loss() -> None:
    [file] = sent_files(image=NOISE)
    assert opened(file).format == "PNG"
    assert np.array_equal(opened(file), NOISE)


def test_a_decoded_picture_can_be_sent_as_jpeg() -> None:
    [file] = sent_files(image=NOISE, image_format="jpeg")
    assert opened(file).format == "JPEG"


def test_a_picture_lying_on_its_side_is_sent_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    [file] = sent_files(image=encoded(NOISE, "PNG", exif=exif))
    assert np.array_equal(opened(file), NOISE.transpose(Image.Transpose.ROTATE_270))


@pytest.mark.parametrize(
    "picture",
    [Image.new("RGBA", (4, 4), (0, 0, 0, 0)), Image.new("LA", (4, 4), (0, 0))],
    ids=["colour", "grey"],
)
def test_transparency_is_sent_as_white(picture: Image.Image) -> None:
    [file] = sent_files(image=encoded(picture, "PNG"))
    assert np.array_equal(opened(file).convert("RGB"), Image.new("RGB", (4, 4), "white"))


def test_a_format_that_servers_do_not_take_is_encoded_anew() -> None:
    [file] = sent_files(image=encoded(NOISE, "BMP"))
    assert np.array_equal(opened(file), NOISE)
    assert opened(file).format == "PNG"


def test_each_picture_is_sent_from_its_own_source() -> None:
    black = encoded(Image.new("RGB", (4, 4)), "JPEG")
    first, second = sent_files(image=[NOISE, black])
    assert np.array_equal(opened(first), NOISE)
    assert second == black


def test_a_video_is_sent_as_its_frames() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    content = messages(text="What happens?", video=frames)[1]["content"]
    assert content[0]["text"] == "A video, as 3 frames in order:"
    assert [part["type"] for part in content] == ["text", *["image_url"] * 3, "text"]
    assert [opened(file).getpixel((0, 0)) for file in sent_files(video=frames)] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
    ]


def test_an_unreadable_picture_is_an_input_error() -> None:
    with pytest.raises(InputError, match="can't be read"):
        messages(image=b"no picture")


def completion(content: Any = None, finish: str = "stop", usage: dict | None = None, **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    return {"choices": [choice], "usage": usage or {"completion_tokens": 7}}


def read_completion(answer: Any, style: Style) -> Rationale | Failure:
    """What the only choice of an answer holds."""
    [read] = read_completions(answer, style)
    return read


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_in_a_field_of_its_own_is_the_thinkers_rationale(field: str) -> None:
    answer = completion("Lima", **{field: "Red and white: Peru."})
    assert read_completion(answer, THINKING) == Rationale("Red and white: Peru.", 7, "stop")
    assert read_completion(answer, INSTRUCT) == Rationale("Lima", 7, "stop")


def test_reasoning_inside_the_content_is_found() -> None:
    answer = completion("<think>Red and white: Peru.</think>Lima")
    assert read_completion(answer, THINKING) == Rationale("Red and white: Peru.", 7, "stop")
    assert read_completion(answer, INSTRUCT) == Rationale("Lima", 7, "stop")


def test_a_budget_that_cut_the_reasoning_is_reported() -> None:
    assert read_completion(completion("Red and", "length"), THINKING) == Rationale("Red and", 7, "length")
    cut = completion(None, "length", reasoning_content="Red and")
    assert read_completion(cut, THINKING) == Rationale("Red and", 7, "length")


def test_content_may_come_in_parts() -> None:
    answer = completion([{"type": "text", "text": "Li"}, {"type": "text", "text": "ma"}])
    assert read_completion(answer, INSTRUCT) == Rationale("Lima", 7, "stop")


@pytest.mark.parametrize(
    ("style", "usage", "tokens"),
    [
        (INSTRUCT, {"completion_tokens": 9}, 9),
        (THINKING, {"completion_tokens": 9}, 9),
        (THINKING, {"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 6}}, 6),
        (INSTRUCT, {"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 6}}, 3),
        (INSTRUCT, {"completion_tokens": 9, "completion_tokens_details": None}, 9),
        (INSTRUCT, {"completion_tokens": None}, 3),  # 9 bytes
    ],
)
def test_tokens_are_the_servers_where_it_counts_them(style: Style, usage: dict, tokens: int) -> None:
    answer = completion("Lima-Lima", usage=usage, reasoning_content="Peru-Peru")
    assert read_completion(answer, style).num_tokens == tokens


def test_half_a_character_at_the_end_is_counted_too() -> None:
    answer = completion("Lima \ud83c", "length", usage={"completion_tokens": None})
    assert read_completion(answer, INSTRUCT) == Rationale("Lima \ud83c", 2, "length")


@pytest.mark.parametrize(
    ("style", "answer", "reason"),
    [
        (INSTRUCT, completion(None), r"the model's output is empty \(finish_reason 'stop'\)"),
        (INSTRUCT, completion("  \n"), "the model's output is empty"),
        (INSTRUCT, completion("<think>a", "length"), "reasoning without an answer .*raise `max_tokens`"),
        (INSTRUCT, completion(None, "length", reasoning="a"), "reasoning without an answer"),
        (THINKING, completion("<think></think>Lima"), "reasoning is empty .*is thinking switched on"),
        (INSTRUCT, completion("Li", "content_filter"), "the server refused: its content filter"),
        (INSTRUCT, completion(None, refusal="I can't help with that."), "the server refused: I can't help"),
        (INSTRUCT, {"choices": []}, "no choices"),
        (INSTRUCT, {"error": {"message": "upstream is overloaded", "code": 502}}, "upstream is overloaded"),
    ],
)
def test_an_answer_without_a_rationale_is_a_failure(style: Style, answer: dict, reason: str) -> None:
    failure = read_completion(answer, style)
    assert isinstance(failure, Failure)
    assert re.search(reason, failure.reason)


@pytest.mark.parametrize(
    "answer", [{}, [], "hello", {"choices": "x"}, {"choices": [None]}, {"choices": [{"text": "a"}]}]
)
def test_what_is_no_chat_completion_is_refused(answer: Any) -> None:
    with pytest.raises(ValueError, match="it has no `choices`|one of its choices has no `message`"):
        read_completion(answer, INSTRUCT)
