"""Servers that are away, fail, refuse or run something else: nothing is lost or doubled, errors name their cause."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from tests.engines.vllm_double import VllmDouble

from mmemb_r1 import MMEmbR1
from mmemb_r1.engines import EngineError, HttpEngine
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError

TEXTS = [f"text {'and more ' * (number % 5)}{number}" for number in range(40)]
QUICK = {"patience": 5.0, "max_retries": 2, "concurrency": 4}


@pytest.fixture(scope="module")
def model(thinking: Callable[..., MMEmbR1]) -> MMEmbR1:
    return thinking(max_reasoning_tokens=3)


@pytest.fixture
def server(model: MMEmbR1) -> Iterator[VllmDouble]:
    double = VllmDouble(model)
    yield double
    double.close()


@pytest.fixture
def served(model: MMEmbR1, server: VllmDouble) -> Iterator[MMEmbR1]:
    other = MMEmbR1.from_model(model[0].model, model.processor)
    other.engine = HttpEngine(server.url, f"{server.url}/v1", **QUICK)
    yield other
    other.engine.close()


def always(model: MMEmbR1) -> list[np.ndarray]:
    return [row["sentence_embedding"].numpy() for row in model.encode(TEXTS, reasoning="always", output_value=None)]


def test_servers_give_what_the_local_model_gives(model, served, server):
    np.testing.assert_allclose(always(served), always(model), atol=2e-5)
    paths = Counter(path for path, _, _ in server.requests)
    assert paths["/v1/models"] == 1
    assert paths["/v1/completions"] == 1 + len(TEXTS)  # and the built-in text
    assert paths["/pooling"] < 12  # several texts at once
    server.requests.clear()
    served.encode(TEXTS[:3], reasoning="never")
    assert [path for path, _, _ in server.requests] == ["/pooling"]  # what was verified stays so


@pytest.mark.parametrize("wrong", [(0, b""), (503, {}), (502, b"<html>"), (429, {"headers": {"Retry-After": "0.1"}})])
def test_requests_that_are_not_answered_are_sent_again(model, served, server, wrong):
    lost = []

    def fault(path, body, number):
        if number % 3 == 0:
            lost.append(number)
            return wrong[0], dict(wrong[1]) if isinstance(wrong[1], dict) else wrong[1]
        return None

    server.fault = fault
    np.testing.assert_allclose(always(served), always(model), atol=2e-5)
    assert len(lost) > 10


def test_a_server_that_starts_again_is_waited_for(model, served, server):
    """Killed in the middle, back a second later at the same address: each vector is there once."""
    replaced = []

    def stop_then_start() -> None:
        server.close()
        time.sleep(1)
        replaced.append(VllmDouble(model, server.port))

    def fault(path, body, number):
        if number == 15:
            thread.start()
        return (0, b"") if number >= 15 else None

    thread = threading.Thread(target=stop_then_start)
    server.fault = fault
    np.testing.assert_allclose(always(served), always(model), atol=2e-5)
    thread.join()
    assert replaced[0].requests
    replaced[0].close()


def test_an_input_that_the_server_refuses_is_named(served, server):
    server.fault = lambda path, body, number: (
        (400, {"error": {"message": "too long"}}) if any(len(ids) > 100 for ids in _prompts(body)) else None
    )
    inputs = [*TEXTS[:20], "word " * 200, *TEXTS[20:]]
    for way in ("never", "always"):
        with pytest.raises(InputError, match="the server refuses it: too long") as error:
            served.encode(inputs, reasoning=way, batch_size=1)
        assert error.value.index == 20
    server.fault = lambda path, body, number: (422, {}) if path == "/v1/completions" and number > 9 else None
    with pytest.raises(InputError, match="the server refuses it"):
        served.encode(TEXTS, reasoning="always")


def _prompts(body: dict) -> list[list[int]]:
    return body.get("input") or [body.get("prompt", [])]


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (401, {"error": {"message": "no key"}}, "refuses the key .401: no key.; no key is sent"),
        (404, {"error": "not here"}, "answered 404 to /.*not here.*Correct the address"),
        (500, b"oops", "fails .500: oops., in 3 tries"),
        (200, b"<html>", "what is no JSON"),
        (200, {"object": "list"}, "answers without 'data'"),
        (200, {"data": [{"id": "a"}, {"id": "b"}]}, "serves 2 models .a, b."),
        (400, {"error": {"message": "no pooling"}}, "refuses"),
    ],
)
def test_what_would_stop_every_input_is_an_error_of_the_engine(served, server, status, answer, message):
    server.fault = lambda path, body, number: (status, dict(answer) if isinstance(answer, dict) else answer)
    with pytest.raises((EngineError, ValueError), match=message):
        served.encode(TEXTS[:3], reasoning="never")


def test_a_server_that_stays_away_is_given_up(model):
    double = VllmDouble(model)
    double.close()
    served = MMEmbR1.from_model(model[0].model, model.processor)
    served.engine = HttpEngine(double.url, patience=0.5)
    with pytest.raises(EngineError, match=r"can't be reached .*not for 0.5 seconds. Start the server"):
        served.encode("Lima", reasoning="never")


def test_a_server_with_another_model_is_refused(model, thinking):
    for other in (thinking(max_reasoning_tokens=4, embedding_dim=8, gate_hidden_size=3), thinking("qwen2_vl")):
        double = VllmDouble(model)
        with_other = MMEmbR1.from_model(other[0].model, other.processor)
        with_other.engine = HttpEngine(double.url, double.url, **QUICK)
        if other.processor.__class__ is model.processor.__class__:
            with_other.encode("Lima", reasoning="always")  # another head and gate on the same backbone
        else:
            with pytest.raises(EngineError, match="runs another model"):
                with_other.encode("Lima", reasoning="always")
        double.close()


def test_normalised_states_are_refused(served, server):
    right = server.right

    def normalised(path, body):
        answer = right(path, body)
        if path != "/pooling":
            return answer
        import base64

        for item in answer["data"]:
            state = np.frombuffer(base64.b64decode(item["data"]), "<f4")
            item["data"] = base64.b64encode((state / np.linalg.norm(state)).tobytes()).decode()
        return answer

    server.right = normalised
    with pytest.raises(EngineError, match="or normalises states"):
        served.encode("Lima", reasoning="never")


def test_one_server_can_only_read(model, server):
    served = MMEmbR1.from_model(model[0].model, model.processor)
    served.engine = HttpEngine(server.url, **QUICK)
    served.encode("Lima", reasoning="never")
    with pytest.raises(ValueError, match='addresses of two servers, or embed with reasoning="never"'):
        served.encode("Lima", reasoning="auto")


def test_keys_come_from_the_environment_and_are_hidden(model, server, monkeypatch):
    served = MMEmbR1.from_model(model[0].model, model.processor)
    served.engine = HttpEngine(server.url, key_env="SOME_KEY", **QUICK)
    with pytest.raises(EngineError, match="SOME_KEY is not set"):
        served.encode("Lima", reasoning="never")
    monkeypatch.setenv("SOME_KEY", "s3cret")
    served.encode("Lima", reasoning="never")
    assert {headers["Authorization"] for _, _, headers in server.requests} == {"Bearer s3cret"}
    server.fault = lambda path, body, number: (403, {"error": f"{'s3cret'} is wrong"})
    with pytest.raises(EngineError, match=r"403: \*\*\* is wrong.; the key is read from SOME_KEY"):
        served.encode("Oslo", reasoning="never")
    with pytest.raises(ValueError, match="never passed"):
        HttpEngine(server.url, key_env="s3cret-itself")
    for address in ("localhost:8000", "http://user:secret@host", "ftp://host"):
        with pytest.raises(ValueError, match="is no address of a server") as error:
            HttpEngine(address)
        assert "secret" not in str(error.value)
