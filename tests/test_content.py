"""Digests of inputs: equal where the inputs are, and only there."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmemb_r1.content
import mmemb_r1.modeling
import mmemb_r1.training
from mmemb_r1.content import content_key, distinct
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError, parse_input, to_conversations
from mmemb_r1.modeling.media_mmemb_r1 import DEFAULTS

REMOTE = replace(DEFAULTS, allow_remote=True)


def picture(seed: int = 0, size: tuple[int, int] = (6, 4)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def as_bytes(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def user(*content: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Two files with the same picture, and one with another."""
    paths = {name: str(tmp_path / f"{name}.png") for name in ("first", "copy", "other")}
    for name, path in paths.items():
        picture(name == "other").save(path)
    return paths


def test_ways_to_write_an_input_have_one_digest(files):
    data = Path(files["first"]).read_bytes()
    frames = np.stack([np.asarray(picture(seed)) for seed in range(3)])
    text, image = {"type": "text", "text": "Lima"}, {"type": "image", "image": data}
    ways: list[list[Any]] = [
        [
            "Lima",
            {"text": "Lima"},
            {"text": ["Lima"]},
            user(text),
            user(text)[0],
            [{"role": "user", "content": "Lima"}],
        ],
        [files["first"], files["copy"], Path(files["copy"]).read_bytes(), {"image": files["first"]}]
        + [{"image": Path(files["copy"])}, {"image": {"bytes": data, "path": None}}, user(image), bytes(data)],
        [picture(), np.asarray(picture()), {"image": picture().convert("RGBA")}],
        [{"text": ["a", " ", "b"]}, "a\nb"],
        [{"video": frames}, {"video": list(frames)}, {"video": [picture(0), picture(1), frames[2]]}],
        [
            {"text": "Lima", "image": data, "instruction": "Be brief."},
            [{"role": "system", "content": "Be brief."}, *user(image, text)],
        ],
        [{"text": "Lima", "instruction": None}, {"text": "Lima", "instruction": ""}, {"text": "Lima", "image": []}],
    ]
    for same in ways:
        assert len({content_key(value) for value in same}) == 1
        conversations = [str(_comparable(chat)) for chat in to_conversations(same)]
        assert len(set(conversations)) == 1  # and so are their embeddings


def _comparable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _comparable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(part) for part in value]
    return np.asarray(value).tobytes() if isinstance(value, Image.Image | np.ndarray) else value


def test_different_inputs_have_different_digests(files, tmp_path):
    (tmp_path / "name.txt").write_bytes(as_bytes(picture()))
    one, two = {"type": "text", "text": "ab"}, {"type": "text", "text": "c"}
    inputs: list[Any] = [
        *("a", "ab", "A", "a ", "a\n", "ü", "u\u0308", "text:1\na", "https://example.org/a", "data:text/plain,a"),
        {"text": "a", "instruction": "b"},
        {"text": "b", "instruction": "a"},
        {"text": "ab", "instruction": "c"},
        {"text": "a", "instruction": "bc"},
        user(one, two),
        user({"type": "text", "text": "a"}, {"type": "text", "text": "bc"}),
        [*user(one), *user(two)],
        [{"role": "assistant", "content": "a"}],
        [{"role": "system", "content": "a"}, *user(one)],
        *(picture(0), picture(1), picture(0, (4, 6)), picture(0, (12, 2)), picture(0).rotate(180)),
        *(files["first"], files["other"], {"image": [files["first"], files["other"]]}),
        {"image": [files["other"], files["first"]]},
        {"image": files["first"], "text": "a"},
        user({"type": "text", "text": "a"}, {"type": "image", "image": files["first"]}),
        {"text": files["first"]},
        {"text": str(tmp_path / "name.txt")},
        {"video": Path(files["first"]).read_bytes()},
        {"video": [picture(0)]},
        {"video": [picture(0), picture(1)]},
        {"video": [[picture(0)], [picture(1)]]},
        {"video": [picture(1), picture(0)]},
        {"image": [picture(0), picture(1)]},
        {"video": [[picture(0)]], "image": picture(1)},
        {"video": [[picture(1)]], "image": picture(0)},
    ]
    keys = [content_key(value) for value in inputs]
    assert all(len(key) == 32 for key in keys)
    for (first, one_key), (second, two_key) in combinations(zip(inputs, keys, strict=True), 2):
        assert one_key != two_key, (first, second)


def test_the_content_of_a_file_counts_when_it_is_asked_for(files):
    before = content_key({"image": files["first"]})
    assert before == content_key({"image": files["first"]})
    Path(files["first"]).write_bytes(Path(files["other"]).read_bytes())
    assert before != content_key({"image": files["first"]}) == content_key({"image": files["other"]})


def test_pictures_count_by_what_is_seen():
    grey = Image.new("L", (3, 2), 7)
    assert content_key(grey) == content_key(Image.new("RGB", (3, 2), (7, 7, 7)))
    palettes = [Image.new("P", (2, 2)) for _ in range(2)]
    for image, color in zip(palettes, ((255, 0, 0), (0, 255, 0)), strict=True):
        image.putpalette(color)  # the same indices
    assert content_key(palettes[0]) != content_key(palettes[1])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned = Image.open(io.BytesIO(as_bytes(picture(), exif=exif)))
    assert content_key(turned) == content_key(picture().rotate(-90, expand=True)) != content_key(picture())


REFUSED: list[Any] = [
    3,
    None,
    [],
    ["a", "b"],
    {},
    {"text": 3},
    {"image": "missing.png"},
    {"image": 3.5},
    {"image": np.zeros((2, 2), dtype=np.float32)},
    {"image": Image.new("F", (2, 2))},
    {"video": 3},
    {"video": "missing.mp4"},
    {"txt": "a"},
    {"text": "a", "instruction": 3},
    {"text": "\ud800"},
    {"image": "https://example.org/a.png"},
    "missing.png",
    [{"role": "user"}],
    [{"role": 3, "content": "a"}],
    [{"role": "user", "content": [{"type": "audio", "audio": "a"}]}],
    [{"role": "user", "content": 3}],
    bytearray(b"a"),
]


@pytest.mark.parametrize("value", REFUSED, ids=repr)
def test_what_encode_refuses_is_equal_to_nothing(value):
    with pytest.raises(InputError):
        to_conversations([value])
    assert content_key(value) != content_key(value)
    assert len(content_key(value)) > 32
    assert distinct([value, value])[0][0] is value


def test_what_encode_takes_has_a_digest(files):
    values = ["a", picture(), files["first"], {"video": [picture()]}, user({"type": "text", "text": "a"})]
    to_conversations(values)
    assert all(content_key(value) == content_key(value) for value in values)


def test_web_addresses_count_by_their_text_and_only_with_permission():
    one, other = ({"image": f"https://example.org/{name}.png"} for name in "ab")
    assert content_key(one, REMOTE) == content_key(dict(one), REMOTE) != content_key(other, REMOTE)
    assert content_key(one) != content_key(one)


def test_a_picture_over_the_limit_is_not_decoded(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    with Image.open(tmp_path / "large.png") as large:
        assert len(content_key(large, replace(DEFAULTS, max_image_pixels=100))) > 32
        assert large.fp is not None  # PIL closes it when it decodes


def test_distinct_inputs_come_in_the_order_of_their_first(files):
    same = picture(3)
    values = ["b", same, "a", files["first"], "b", picture(3), same, files["copy"], {"image": picture(3)}, "a"]
    unique, index = distinct(values)
    assert [value if isinstance(value, str) else type(value) for value in unique] == ["b", Image.Image, "a", values[3]]
    assert index.tolist() == [0, 1, 2, 3, 0, 1, 1, 3, 1, 2]
    assert unique[1] is same
    assert distinct([])[0] == []


def test_a_text_is_no_picture_of_that_name(files):
    for name in (files["first"], "data:image/png;base64,AAAA"):
        assert distinct([name, {"text": name}, name, {"text": name}])[1].tolist() == [0, 1, 0, 1]


def test_texts_are_not_hashed(monkeypatch):
    def fail(*args):
        raise AssertionError("a text was hashed")

    monkeypatch.setattr(mmemb_r1.content, "content_key", fail)
    values = [f"text {number % 10}" for number in range(100)]
    unique, index = distinct(values)
    assert unique == values[:10]
    assert [unique[place] for place in index] == values


def test_an_object_is_looked_into_once(monkeypatch):
    calls = []
    monkeypatch.setattr(mmemb_r1.content, "content_key", lambda value, media: calls.append(value) or b"key")
    distinct([picture()] * 5)
    assert len(calls) == 1


def test_inputs_that_are_made_while_they_are_read_are_told_apart():
    class Column(list):  # as those of tables: an object per access, gone right after
        def __iter__(self):
            return ({"text": text, "instruction": "Be brief."} for text in super().__iter__())

    letters = "abc" + "abacbcbacabbcaacb" * 3  # equal ones are not kept, and the next may take their place in memory
    assert distinct(Column(letters))[1].tolist() == ["abc".index(letter) for letter in letters]


def test_parsed_input_is_an_input(files):
    values = [
        "a",
        picture(),
        {"text": ["a", "b"], "image": files["first"], "instruction": "c"},
        {"video": [picture()]},
    ]
    for value in values:
        assert parse_input(parse_input(value)) == parse_input(value)
        assert content_key(parse_input(value)) == content_key(value)


def test_one_file_knows_what_an_address_looks_like():
    """Whoever asks whether a text is a path, a web address or a data URL asks `parse_address`."""
    folders = [Path(package.__file__).parent for package in (mmemb_r1.content, mmemb_r1.modeling, mmemb_r1.training)]
    pattern = re.compile(r"""\.startswith\(\(?["'](data:|https?:)""")
    files = [path for folder in folders for path in folder.rglob("*.py")]
    found = {path.name for path in files if pattern.search(path.read_text("utf-8"))}
    assert found == {"media_mmemb_r1.py"}
