"""Requests become inputs of the model, or errors in OpenAI's shape that name the field and the index."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from tests.serving.conftest import data_url

from mmemb_r1.serving.errors import ApiError
from mmemb_r1.serving.executor import Answer
from mmemb_r1.serving.inputs import read_inputs
from mmemb_r1.serving.protocol import parse_request, response_body
from mmemb_r1.serving.settings import ServerSettings

PNG = base64.b64decode(data_url().partition(",")[2])
URL = data_url()


def parsed(settings=None, **fields):
    request = parse_request(json.dumps({"model": "m", **fields}).encode())
    return [(one.value, one.has_media) for one in read_inputs(request, ServerSettings(**(settings or {})))]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("a", [({"text": "a"}, False)]),
        (["a", "b"], [({"text": "a"}, False), ({"text": "b"}, False)]),
        ({"text": "a", "image": None}, [({"text": "a"}, False)]),
        ({"image": URL, "text": ["a", "b"]}, [({"image": PNG, "text": ["a", "b"]}, True)]),
        ([{"image": [URL, URL]}, "a"], [({"image": [PNG, PNG]}, True), ({"text": "a"}, False)]),
        ({"image": base64.b64encode(PNG).decode(), "instruction": "i"}, [({"image": PNG, "instruction": "i"}, True)]),
        ({"video": URL.replace("image/png", "video/mp4")}, [({"video": PNG}, True)]),
        ({"video": [URL, URL]}, [({"video": [{"bytes": PNG, "path": None}] * 2}, True)]),
        ([{"role": "user", "content": "a"}], [([{"role": "user", "content": "a"}], False)]),
        (
            [[{"role": "user", "content": "a"}], {"role": "user", "content": "b"}, "c"],
            [
                ([{"role": "user", "content": "a"}], False),
                ([{"role": "user", "content": "b"}], False),
                ({"text": "c"}, False),
            ],
        ),
    ],
)
def test_input_may_be(given, wanted):
    assert parsed(input=given) == wanted


@pytest.mark.parametrize("url", [URL, {"url": URL}, {"url": URL, "detail": "auto"}])
def test_chats_as_other_clients_write_them(url):
    content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "a"}]
    wanted = [{"type": "image", "image": PNG}, {"type": "text", "text": "a"}]
    assert parsed(messages=[{"role": "user", "content": content}]) == [([{"role": "user", "content": wanted}], True)]


def test_strings_are_text_whatever_they_name(tmp_path, monkeypatch):
    """A client must not be able to have files of the server read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.png").write_bytes(PNG)
    for name in ("secret.png", str(tmp_path / "secret.png"), (tmp_path / "secret.png").as_uri(), URL):
        assert parsed(input=name) == [({"text": name}, False)]


@pytest.mark.parametrize("name", ["secret.png", "{folder}/secret.png", "file://{folder}/secret.png", "~/secret.png"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: {"input": {"image": name}},
        lambda name: {"input": {"image": [name]}},
        lambda name: {"input": {"video": name}},
        lambda name: {"input": {"video": [name, name]}},
        lambda name: {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": name}}]}]},
        lambda name: {"messages": [{"role": "user", "content": [{"type": "image", "image": name}]}]},
    ],
)
def test_no_file_of_the_server_is_opened(name, wrap, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "secret.png").write_bytes(PNG)
    with pytest.raises(ApiError, match="names of files are not taken"):
        parsed(**wrap(name.format(folder=tmp_path)))


def test_a_path_that_is_base64_is_read_as_base64(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "abcd").write_bytes(PNG)
    assert parsed(input={"image": "abcd"}) == [({"image": base64.b64decode("abcd")}, True)]


def test_web_addresses_are_taken_where_that_is_allowed():
    address = "https://example.org/a.png"
    with pytest.raises(ApiError, match="Input 1 can't be embedded: its image is a web address.*downloads nothing"):
        parsed(input=["a", {"image": address}])
    assert parsed({"allow_remote_media": True}, input={"image": address}) == [({"image": address}, True)]


CASES = [
    ({"input": [1, 2, 3]}, "token ids.*Send strings", "input"),
    ({"input": [[1, 2], [3]]}, "token ids.*check_embedding_ctx_length=False", "input"),
    ({}, "neither input nor messages", "input"),
    ({"input": "a", "messages": []}, "both input and messages", "input"),
    ({"input": []}, "0 inputs; allowed: from 1 to 2048", "input"),
    ({"input": ["a"] * 2049}, "2049 inputs; allowed: from 1 to 2048", "input"),
    ({"input": ["a", 3]}, "Input 1 can't be embedded: it is a number; allowed: a string", "input[1]"),
    ({"input": ["a", None]}, "it is null", "input[1]"),
    ({"input": True}, "it is a truth value", "input[0]"),
    ({"input": ["a", ["b"]]}, "Input 1 can't be embedded: it is a list; allowed", "input[1]"),
    ({"input": {"txt": "a"}}, "the unknown key 'txt'; allowed keys: text, image", "input[0]"),
    ({"input": {}}, "it is empty", "input[0]"),
    ({"input": {"text": 1}}, "its text is a number", "input[0]"),
    ({"input": {"image": 1}}, "its image is a number; allowed: a data URL", "input[0]"),
    ({"input": {"image": "data:image/png;base64,%%%"}}, "not valid base64", "input[0]"),
    ({"input": {"image": [URL] * 65}}, "more than 64 pictures and videos", "input[0]"),
    ({"input": ["x", {"text": "a" * (2**18 + 1)}]}, "more than 262144 characters", "input[1]"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "the role 'tool'; allowed: system, user", "messages[0]"),
    ({"messages": [{"role": "user", "content": 1}]}, "content is a number", "messages[0]"),
    ({"messages": [{"role": "user", "content": "a", "name": "x"}]}, "the key 'name', which is not", "messages[0]"),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        "a part that is not known",
        "messages[0]",
    ),
    ({"messages": ["a"]}, "it is a list; allowed", "messages[0]"),
    ({"input": "a", "dimension": 3}, "'dimension' is not known; did you mean 'dimensions'", "dimension"),
    ({"input": "a", "dimensions": 0}, "dimensions=0 is not allowed", "dimensions"),
    ({"input": "a", "dimensions": "8"}, "dimensions='8' is not allowed", "dimensions"),
    ({"input": "a", "encoding_format": "hex"}, "encoding_format='hex' is not allowed.*'base64'", "encoding_format"),
    ({"input": "a", "reasoning": "sometimes"}, "reasoning='sometimes' is not allowed", "reasoning"),
    ({"input": "a", "gate_threshold": 2}, "gate_threshold=2 is not allowed", "gate_threshold"),
    ({"input": "a", "max_latency_ms": -1}, "max_latency_ms=-1 is not allowed", "max_latency_ms"),
    ({"input": "a", "explain": 1}, "explain=1 is not allowed", "explain"),
]


@pytest.mark.parametrize(("fields", "told", "param"), CASES)
def test_what_is_wrong_is_said(fields, told, param):
    with pytest.raises(ApiError, match=told) as refused:
        parsed(**fields)
    assert refused.value.status == 400 and refused.value.param == param
    assert refused.value.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "image_url", [{"url": URL, "detail": "high"}, {"url": URL, "x": 1}, {"detail": "auto"}, {}, None, 3]
)
def test_parts_of_chats_that_say_more_are_refused(image_url):
    content = [{"type": "image_url", "image_url": image_url}]
    with pytest.raises(ApiError, match="Input 0 can't be embedded"):
        parsed(messages=[{"role": "user", "content": content}])


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b"[1]", b'"a"', b"null", b"[" * 100_000, b'{"model": "m"' * 3, b'{"a": 1e999}']
)
def test_bodies_that_are_no_request(body):
    with pytest.raises(ApiError) as refused:
        parse_request(body)
    assert refused.value.status == 400


def test_the_name_of_the_model_is_needed():
    with pytest.raises(ApiError, match="The field 'model' is missing"):
        parse_request(b'{"input": "a"}')


def test_the_response_holds_what_the_answers_say():
    request = parse_request(b'{"model": "m", "input": ["a", "b"]}')
    answers = [
        Answer(np.zeros(2, np.float32), 0.25, 5),
        Answer(np.zeros(2, np.float32), 0.75, 7, rounds=1, reasoning_tokens=9, stopped=True),
    ]
    vectors = np.array([[1, 0.5], [0.1, -3e-8]], dtype=np.float32)
    body = json.loads(response_body(request, answers, vectors, "m", ["", "because"]))
    np.testing.assert_array_equal(np.float32([item["embedding"] for item in body["data"]]), vectors)
    assert [item["index"] for item in body["data"]] == [0, 1]
    assert ["stopped" in item for item in body["data"]] == [False, True]
    assert body["data"][1]["explanation"] == {
        "reasoned": True, "gate_prob": 0.75, "num_reasoning_tokens": 9, "num_reasoning_rounds": 1,
        "rationale": "because",
    }  # fmt: skip
    assert body["usage"] == {"prompt_tokens": 12, "total_tokens": 21, "reasoning_tokens": 9}
    request.encoding_format = "base64"
    body = json.loads(response_body(request, answers, vectors, "m"))
    assert "explanation" not in body["data"][0]
    for item, vector in zip(body["data"], vectors, strict=True):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(item["embedding"]), "<f4"), vector)


def test_settings_that_can_not_be_are_refused():
    with pytest.raises(ValueError, match="max_inputs=0 has to be more than 0"):
        ServerSettings(max_inputs=0)
    with pytest.raises(ValueError, match="max_body_bytes=10 is more than max_pending_bytes=9"):
        ServerSettings(max_body_bytes=10, max_pending_bytes=9)
