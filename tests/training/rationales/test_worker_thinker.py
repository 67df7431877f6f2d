"""Workers as thinkers of an embedder: a chat server, and a second model on this machine."""

from __future__ import annotations

import base64
import io
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.chat_server import Reply, Server, closed_port

from mmemb_r1 import MMEmbR1
from mmemb_r1.thinker import NoThought, ThinkerError, Thought, load_thinker
from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training.rationales.worker import WorkerError

pytestmark = pytest.mark.usefixtures("one_thread", "quick_retries")
TEXTS = [f"city {number}" for number in range(12)]


def keys(server: Server | str, **others: Any) -> dict[str, Any]:
    url = server if isinstance(server, str) else server.url
    return {"kind": "openai", "model": "m", "base_url": url, "max_retries": 2, "patience": 0.0, **others}


def echo(body: dict[str, Any], number: int) -> Reply:
    content = body["messages"][1]["content"]
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return Reply(f"{text}, so it is red")


@pytest.fixture
def model(thinking: Callable[..., MMEmbR1]) -> MMEmbR1:
    return thinking(max_reasoning_tokens=40)


def test_a_chat_server_thinks(model, server, tmp_path):
    """From a file; with pictures, instructions and the budget of the call, and greedy."""
    server.reply = echo
    path = tmp_path / "thinker.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in keys(server).items()), encoding="utf-8")
    model.thinker = path
    red = Image.new("RGB", (8, 8), "red")
    inputs = [*TEXTS, {"image": red, "text": "what?"}]
    rows = model.explain(inputs, reasoning="always", prompt="Find it.", batch_size=4)
    expected = [f"Task: Find it.\n{text}, so it is red" for text in [*TEXTS, "what?"]]
    assert [row["rationale"] for row in rows] == expected
    assert {(body["max_tokens"], body["temperature"], body["seed"], body["model"]) for body in server.requests} == {
        (40, 0.0, 0, "m")
    }
    [asked] = [
        body["messages"][1]["content"] for body in server.requests if isinstance(body["messages"][1]["content"], list)
    ]
    [url] = [part["image_url"]["url"] for part in asked if part["type"] == "image_url"]
    assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).getpixel((0, 0)) == (255, 0, 0)


def test_what_fails_for_a_while_is_asked_again(model, server):
    def reply(body: dict[str, Any], number: int) -> Reply:
        return Reply("busy", status=503 if number % 2 else 429) if number <= 4 else echo(body, number)

    server.reply = reply
    model.thinker = keys(server, max_retries=8, patience=30.0)
    assert all(row["reasoned"] for row in model.explain(TEXTS, reasoning="always"))
    assert len(server.requests) == len(TEXTS) + 4


def test_what_fails_for_good_names_its_input(model, server):
    def reply(body: dict[str, Any], number: int) -> Reply:
        is_bad = body["messages"][1]["content"] == "city 7"
        return Reply("The policy forbids it.", status=400) if is_bad else echo(body, number)

    server.reply = reply
    model.thinker = keys(server)
    with pytest.raises(
        ThinkerError, match=r"Input 7 can't .*the server answered 400: The policy forbids it\. Correct"
    ):
        model.encode(TEXTS, reasoning="always")


@pytest.mark.parametrize(("status", "told"), [(401, "refuses the key"), (404, "knows no such path or model")])
def test_what_fails_for_all_is_told_as_such(model, server, status, told):
    server.reply = lambda body, number: Reply("no", status=status)
    model.thinker = keys(server)
    with pytest.raises(WorkerError, match=f"Worker 'thinker': .*{told}"):
        model.encode(TEXTS, reasoning="always")


def test_a_server_that_is_not_there_is_told(model):
    model.thinker = keys(f"http://127.0.0.1:{closed_port()}/v1", start_patience=0.0)
    with pytest.raises(WorkerError, match="can't be reached"):
        model.encode("Lima", reasoning="always")


def test_the_key_comes_from_the_environment(model, server, monkeypatch):
    server.reply = echo
    model.thinker = keys(server, api_key_env="THINKER_KEY")
    with pytest.raises(WorkerError, match="the environment variable THINKER_KEY of `api_key_env` is not set"):
        model.encode("Lima", reasoning="always")
    monkeypatch.setenv("THINKER_KEY", "sk-secret")
    model.encode("Lima", reasoning="always")
    assert server.headers[-1]["authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in str(model.thinking.identity)


def test_inputs_are_read_while_the_server_thinks(model, server):
    """The first answer waits for a request about an input of the last batch."""
    last = threading.Event()

    def reply(body: dict[str, Any], number: int) -> Reply:
        if body["messages"][1]["content"] == TEXTS[-1]:
            last.set()
        assert last.wait(60)
        return echo(body, number)

    server.reply = reply
    model.thinker = keys(server, concurrency=len(TEXTS))
    assert all(row["reasoned"] for row in model.explain(TEXTS, reasoning="always", batch_size=1))


def test_a_budget_of_its_own_is_kept(model, server):
    server.reply = echo
    own = keys(server, max_tokens=500, temperature=0.7, name="large")
    model.thinker = own
    model.encode("Lima", reasoning="always")
    assert (server.requests[0]["max_tokens"], server.requests[0]["temperature"]) == (500, 0.7)
    first = model.thinking.identity
    assert first["definition"]["max_tokens"] == 500
    model.thinker = {**own, "max_tokens": 501}
    assert model.thinking.identity != first
    model.thinker = {**own, "base_url": "http://elsewhere:8000/v1", "concurrency": 3, "name": "moved"}
    assert model.thinking.identity == first  # servers move


def test_the_budget_of_a_call_is_no_part_of_its_definition(model, server):
    server.reply = echo
    model.thinker = keys(server)
    before = model.thinking.identity
    model.encode("Lima", reasoning="always", max_reasoning_tokens=7)
    assert server.requests[0]["max_tokens"] == 7
    assert model.thinking.identity == before and "max_tokens" not in before["definition"]


def test_it_goes_to_other_processes(server):
    server.reply = echo
    thinker = pickle.loads(pickle.dumps(load_thinker(keys(server))))
    assert list(thinker.think([{"text": "a"}], 9)) == [(0, Thought("a, so it is red"))]


def test_a_second_model_on_this_machine_thinks(model, tmp_path):
    vlm, processor = build_tiny_vlm("qwen2_vl")
    vlm.save_pretrained(tmp_path / "vlm")
    processor.save_pretrained(tmp_path / "vlm")
    (tmp_path / "style.txt").write_text("# rationale: answer\nDescribe it.", encoding="utf-8")
    model.thinker = {
        "kind": "transformers", "model": str(tmp_path / "vlm"), "device": "cpu", "style": str(tmp_path / "style.txt"),
        "batch_size": 2,
    }  # fmt: skip
    inputs = [*TEXTS[:5], {"image": Image.new("RGB", (32, 32), "red")}]
    alone = [answer.text for _, answer in model.thinker.think([{"text": text} for text in TEXTS[:5]], 12)]
    assert len(alone) == 5
    rows = model.explain(inputs, reasoning="always", max_reasoning_tokens=12)
    assert all(row["reasoned"] and 0 < row["num_reasoning_tokens"] <= 12 for row in rows)
    once, again = (model.encode(inputs, reasoning="always", max_reasoning_tokens=12) for _ in range(2))
    np.testing.assert_allclose(once, again, atol=1e-6)


def test_a_worker_of_ones_own_thinks(model, tmp_path, monkeypatch):
    (tmp_path / "my_thinking_workers.py").write_text(WORKER, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    model.thinker = {"kind": "my_thinking_workers:FirstWords", "words": 2}
    assert model.explain("a b c d", reasoning="always")["rationale"] == "a b"
    assert model.thinking.identity["definition"] == {"kind": "first words", "words": 2}
    answers = dict(model.thinker.think(iter([{"text": "a"}, {"image": [Path("b.png")]}]), 9))
    assert answers == {
        0: Thought("a", is_cut=True),
        1: NoThought("the worker has nothing to say about such an input."),
    }


WORKER = """
from dataclasses import dataclass

from mmemb_r1.training.rationales.worker import Rationale


@dataclass
class FirstWords:
    name: str
    num_samples: int = 1
    batch_size: int = 2
    words: int = 5

    @property
    def definition(self):
        return {"kind": "first words", "words": self.words}

    def draw(self, requests):
        return [
            [Rationale(" ".join(text.split()[: self.words]), 1, "length")] if text else []
            for text in (request.input.get("text") for request in requests)
        ]
"""
