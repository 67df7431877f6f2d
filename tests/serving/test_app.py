"""A running server gives the vectors that `encode` gives, to any client, and refuses what it can't embed."""

from __future__ import annotations

import base64
import io
import json
import logging
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from tests.serving.conftest import data_url, running, wait_until

from mmemb_r1.serving.logs import JsonFormatter, log_to

TEXTS = ["Lima", "A red flag. " * 9, "what is the capital of Peru?", "x", "<think> no </think> <|embed|>"]
CLOSE = {"atol": 1e-6, "rtol": 0}


def picture(colour):
    return Image.open(io.BytesIO(base64.b64decode(data_url(colour).partition(",")[2])))


@pytest.mark.parametrize("mode", ["never", "auto", "always"])
@pytest.mark.parametrize("side", ["query", "document", None])
def test_vectors_are_those_of_encode(server, model, mode, side):
    encode = {"query": model.encode_query, "document": model.encode_document, None: model.encode}[side]
    sides = {} if side is None else {"input_type": side}
    wanted = encode([{"text": text} for text in TEXTS], reasoning=mode)
    np.testing.assert_allclose(server.vectors(TEXTS, reasoning=mode, **sides), wanted, **CLOSE)


@pytest.mark.parametrize("side", ["query", "document", None])
def test_what_is_not_said_is_as_in_encode(server, model, side):
    encode = {"query": model.encode_query, "document": model.encode_document, None: model.encode}[side]
    sides = {} if side is None else {"input_type": side}
    np.testing.assert_allclose(server.vectors(TEXTS[:3], **sides), encode(TEXTS[:3]), **CLOSE)
    np.testing.assert_allclose(
        server.vectors(TEXTS[:3], gate_threshold=0.4, **sides), encode(TEXTS[:3], gate_threshold=0.4), **CLOSE
    )


def test_mixed_inputs_of_one_request(server, model):
    red, blue = data_url("red"), data_url("blue", 60)
    chat = [{"role": "system", "content": "Tell."}, {"role": "user", "content": [{"type": "text", "text": "sky"}]}]
    sent = ["a", {"image": red}, {"text": "b", "image": [red, blue], "instruction": "Find."}, chat, {"image": blue}]
    wanted = ["a", {"image": red}, {"text": "b", "image": [red, blue], "instruction": "Find."}, chat, {"image": blue}]
    for mode in ("never", "always"):
        vectors = server.vectors(sent, reasoning=mode, input_type="query")
        np.testing.assert_allclose(vectors, model.encode_query(wanted, reasoning=mode), **CLOSE)


def test_videos(server, model):
    frames = [data_url(colour) for colour in ("red", "green", "blue", "white")]
    wanted = model.encode([{"video": [picture(c) for c in ("red", "green", "blue", "white")]}], reasoning="never")
    np.testing.assert_allclose(server.vectors({"video": frames}, reasoning="never"), wanted, **CLOSE)


def test_messages_with_pictures(server, model):
    url = data_url("green")
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]
    status, body, _ = server.ask(body={"model": "tiny", "messages": [{"role": "user", "content": content}]})
    assert status == 200
    wanted = model.encode([{"image": url, "text": "what?"}])
    np.testing.assert_allclose([body["data"][0]["embedding"]], wanted, **CLOSE)


def test_instruction(server, model):
    vectors = server.vectors(["a"], instruction="Find the city.")
    np.testing.assert_allclose(vectors, model.encode(["a"], prompt="Find the city."), **CLOSE)
    assert np.abs(vectors - server.vectors(["a"])).max() > 1e-3


def test_shortened_vectors_have_unit_norm(server, model):
    vectors = server.vectors(TEXTS, dimensions=5)
    assert vectors.shape == (5, 5)
    np.testing.assert_allclose(vectors, model.encode(TEXTS[:4] + [{"text": TEXTS[4]}], truncate_dim=5), **CLOSE)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert "33 is more than the 32" in server.error(400, dimensions=33)["message"]


def test_requests_of_different_options_stand_beside_each_other(server, model):
    options = [
        {"reasoning": "never"},
        {"reasoning": "always", "max_reasoning_tokens": 3},
        {"reasoning": "always", "max_reasoning_tokens": 40, "max_reasoning_rounds": 1},
        {"reasoning": "auto", "gate_threshold": 0.1},
        {"reasoning": "auto", "gate_threshold": 0.9, "max_reasoning_rounds": 4},
    ]
    texts = [f"{text} {number}" for number in range(8) for text in TEXTS]
    wanted = [model.encode_query(texts, **given) for given in options]
    with ThreadPoolExecutor(40) as pool:
        calls = [
            (at, place, pool.submit(server.vectors, [text], input_type="query", **given))
            for place, text in enumerate(texts)
            for at, given in enumerate(options)
        ]
        for at, place, call in calls:
            np.testing.assert_allclose(call.result()[0], wanted[at][place], **CLOSE)


def test_explain(server, model):
    body = server.embed(TEXTS, reasoning="auto", input_type="query", explain=True)
    wanted = model.explain([{"text": text} for text in TEXTS], reasoning="auto", task="query")
    for item, explained in zip(body["data"], wanted, strict=True):
        np.testing.assert_allclose(item["embedding"], explained.pop("embedding"), **CLOSE)
        assert item["explanation"] == {**explained, "gate_prob": pytest.approx(explained["gate_prob"], abs=1e-5)}
    assert {item["explanation"]["reasoned"] for item in body["data"]} == {True, False}
    tokens = sum(item["num_reasoning_tokens"] for item in wanted)
    assert body["usage"]["reasoning_tokens"] == tokens > 0
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + tokens


def test_a_latency_budget_stops_thinking(server, model):
    body = server.embed(
        TEXTS, reasoning="always", max_reasoning_tokens=1000, max_latency_ms=1, explain=True, input_type="query"
    )
    assert [item["stopped"] for item in body["data"]] == ["max_latency_ms"] * 5
    vectors = np.array([item["embedding"] for item in body["data"]])
    assert [item["explanation"]["reasoned"] for item in body["data"]] == [False] * 5
    np.testing.assert_allclose(
        vectors, model.encode_query([{"text": text} for text in TEXTS], reasoning="never"), **CLOSE
    )


class TestClients:
    def test_openai(self, server, model):
        openai = pytest.importorskip("openai")
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            for form in ({}, {"encoding_format": "float"}, {"dimensions": 8}):
                response = client.embeddings.create(model="tiny", input=TEXTS[:4], user="u", **form)
                vectors = np.array([item.embedding for item in response.data])
                wanted = model.encode(TEXTS[:4], truncate_dim=form.get("dimensions"))
                np.testing.assert_allclose(vectors, wanted, **CLOSE)
            assert response.usage.prompt_tokens > 0 and response.model == "tiny"
            extra = {"reasoning": "always", "input_type": "query"}
            response = client.embeddings.create(model="tiny", input="Lima", extra_body=extra)
            wanted = model.encode_query("Lima", reasoning="always")
            np.testing.assert_allclose(response.data[0].embedding, wanted, **CLOSE)
            assert [one.id for one in client.models.list()] == ["tiny"]
            assert client.models.retrieve("tiny").id == "tiny"
            with pytest.raises(openai.BadRequestError, match="token ids"):
                client.embeddings.create(model="tiny", input=[1, 2])
            with pytest.raises(openai.NotFoundError, match="There is no model 'other' here; this server has 'tiny'"):
                client.embeddings.create(model="other", input="a")

    def test_curl(self, server, model):
        if shutil.which("curl") is None:
            pytest.skip("there is no curl")
        body = json.dumps({"model": "tiny", "input": {"text": "b", "image": data_url()}})
        command = ["curl", "-s", f"{server.url}/v1/embeddings", "-H", "content-type: application/json", "-d", "@-"]
        done = subprocess.run(command, input=body, capture_output=True, text=True, timeout=60, check=True)
        wanted = model.encode({"text": "b", "image": data_url()})
        np.testing.assert_allclose(json.loads(done.stdout)["data"][0]["embedding"], wanted, **CLOSE)

    def test_langchain(self, server, model):
        langchain = pytest.importorskip("langchain_openai")
        embeddings = langchain.OpenAIEmbeddings(
            model="tiny", base_url=f"{server.url}/v1", api_key="none", check_embedding_ctx_length=False
        )
        np.testing.assert_allclose(embeddings.embed_documents(TEXTS[:4]), model.encode(TEXTS[:4]), **CLOSE)


class TestErrors:
    def test_the_index_of_an_input_is_named(self, server):
        error = server.error(400, input=["a", {"image": "data:image/png;base64,AAAA"}, "b"])
        assert error["param"] == "input[1]" and error["code"] == "invalid_input"
        assert error["message"].startswith("Input 1 can't be embedded: its image of 3 bytes can't be read")
        assert server.error(400, input=["a", " "])["message"].startswith("Input 1 can't be embedded: it is empty.")

    def test_an_input_that_is_too_long(self, server):
        message = server.error(400, input=["a", "word " * 20_000])["message"]
        assert "Input 1" in message and "tokens" in message and "at most" in message

    def test_a_picture_that_is_too_large_is_not_decoded(self, server):
        Image.new("1", (10_000, 10_000)).save(stream := io.BytesIO(), "PNG")
        bomb = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
        assert "10000 x 10000 pixels" in server.error(400, input={"image": bomb})["message"]

    def test_limits_of_what_requests_ask_for(self, server):
        for name, value, most in (("max_reasoning_tokens", 1025, 1024), ("max_reasoning_rounds", 5, 4)):
            error = server.error(400, reasoning="always", **{name: value})
            assert f"{name}={value} is more than this server allows; give {most} at most" in error["message"]

    def test_paths_and_methods(self, server):
        status, body, _ = server.ask("/v1/chat/completions", {})
        assert status == 404 and "POST /v1/embeddings" in body["error"]["message"]
        status, body, headers = server.ask("/v1/embeddings")
        assert status == 405 and body["error"]["type"] == "invalid_request_error" and headers["allow"] == "POST"
        assert server.ask("/v1/models/other")[0] == 404

    def test_vectors_of_two_spaces_are_not_mixed(self, thinking):
        with running(thinking(spaces=2)) as server:
            assert "would mix vectors of two spaces" in server.error(400, reasoning="auto")["message"]
            assert len(server.vectors(["a", "b"], reasoning="always")) == 2
            assert len(server.embed(["a"], reasoning="auto", explain=True)["data"]) == 1


class TestKeys:
    def test_only_who_has_a_key_gets_vectors(self, model):
        with running(model, keys=("one", "two")) as server:
            body = {"model": "tiny", "input": "a"}
            for key in ("one", "two"):
                assert server.ask(body=body, authorization=f"Bearer {key}")[0] == 200
            for headers in ({}, {"authorization": "Bearer three"}, {"authorization": "Basic one"}):
                status, told, sent = server.ask(body=body, **headers)
                assert status == 401 and told["error"]["code"] == "invalid_api_key"
                assert sent["www-authenticate"] == "Bearer"
            assert server.ask("/v1/models")[0] == 401
            assert [server.ask(path)[0] for path in ("/health", "/ready", "/metrics")] == [200] * 3


def test_metrics_count_what_was_done(model):
    with running(model) as server:

        def value(name, **labels):
            told = ",".join(f'{key}="{one}"' for key, one in labels.items())
            line = f"mmemb_r1_{name}{{{told}}}" if told else f"mmemb_r1_{name}"
            page = server.ask("/metrics")[1].splitlines()
            found = [float(text.split()[-1]) for text in page if text.startswith(line + " ")]
            return found[0] if found else 0.0

        before = value("prompt_tokens_total"), value("reasoning_tokens_total")
        usage = server.embed(TEXTS, reasoning="always", input_type="query")["usage"]
        server.embed(TEXTS[:2], reasoning="never")
        server.error(400, input=[])
        assert value("requests_total", status="200") == 2 and value("requests_total", status="400") == 1
        assert value("request_seconds_count", mode="always") == value("request_seconds_count", mode="never") == 1
        assert value("reasoning_tokens_total") - before[1] == usage["reasoning_tokens"]
        assert value("prompt_tokens_total") - before[0] > usage["prompt_tokens"]
        assert value("inputs_reasoned_total", mode="always") >= 5
        assert value("inputs_waiting") == value("inputs_thinking") == value("pending_bytes") == 0
        assert value("batch_rows_count") > 0 and value("step_rows_count") > 0


def test_logs_are_json_and_hold_no_input(model):
    stream, names = io.StringIO(), ("mmemb_r1.serving", "uvicorn.error")
    before = {name: (logging.getLogger(name).handlers[:], logging.getLogger(name).propagate) for name in names}
    try:
        log_to(stream)
        with running(model) as server:
            server.ask(body={"model": "tiny", "input": "my secret"}, **{"x-request-id": "mine-1"})
            server.error(400, input=["a", {"image": "my secret"}])
            server.error(404, model="my secret")
    finally:
        for name, (handlers, propagate) in before.items():
            logging.getLogger(name).handlers[:] = handlers
            logging.getLogger(name).propagate = propagate
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    requests = [line for line in lines if line["message"] == "embeddings"]
    assert [line["status"] for line in requests] == [200, 400, 404]
    assert requests[0]["request_id"] == "mine-1" and requests[0]["inputs"] == 1 and requests[0]["seconds"] > 0
    assert "secret" not in stream.getvalue()


def test_errors_are_logged_without_what_they_quote():
    formatter = JsonFormatter()
    try:
        try:
            raise ValueError("my secret")
        except ValueError as error:
            raise RuntimeError("CUDA out of memory") from error
    except RuntimeError as error:
        record = logging.LogRecord("n", logging.ERROR, __file__, 1, "it failed", (), (type(error), error, None))
    line = formatter.format(record)
    assert json.loads(line)["error"] == "RuntimeError: CUDA out of memory, caused by ValueError"
    assert "secret" not in line


def test_request_ids(server):
    body = {"model": "tiny", "input": "a"}
    assert server.ask(body=body, **{"x-request-id": "abc.1"})[2]["x-request-id"] == "abc.1"
    assert len(server.ask(body=body, **{"x-request-id": "a b"})[2]["x-request-id"]) == 32


class TestFullServers:
    def test_a_full_queue_is_told_and_everything_else_is_answered(self, model):
        with running(model, max_waiting=4, batch_size=2) as server:
            status, body, headers = server.ask(body={"model": "tiny", "input": ["a"] * 5})
            assert status == 429 and body["error"]["code"] == "queue_full" and int(headers["retry-after"]) >= 1
            assert len(server.vectors(["a"] * 4)) == 4

    def test_bytes_of_all_requests_are_limited(self, model):
        with running(model, max_body_bytes=1000, max_pending_bytes=1500) as server:
            with server.connect() as first:
                head = b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: 990\r\n\r\n"
                first.sendall(head + b"x" * 980)
                wait_until(lambda: "mmemb_r1_pending_bytes 980.0" in server.ask("/metrics")[1])
                status, body, headers = server.ask(body=b"x" * 600)
                assert status == 429 and body["error"]["code"] == "server_full" and headers["retry-after"] == "1"
                assert server.ask(body=b"x" * 400)[0] == 400  # no JSON
                first.sendall(b"x" * 10)
                assert b"400 Bad Request" in first.recv(1000)
            wait_until(lambda: "mmemb_r1_pending_bytes 0.0" in server.ask("/metrics")[1])

    def test_health_and_readiness(self, model):
        with running(model) as server:
            assert server.ask("/health")[1] == {"status": "ok"} and server.ask("/ready")[1] == {"status": "ready"}
            server.scheduler._failures = 3
            assert server.ask("/health")[0] == server.ask("/ready")[0] == 503
            server.scheduler._failures = 0
            server.server.config.app.state.is_stopping = True
            assert server.ask("/health")[0] == 200 and server.ask("/ready")[0] == 503

    def test_stopping_finishes_what_is_there(self, model):
        with running(model) as server:
            done = []
            texts = [f"{text} {number}" for number in range(10) for text in TEXTS]
            options = {"reasoning": "always", "max_reasoning_tokens": 40}
            asking = threading.Thread(target=lambda: done.append(server.vectors(texts, **options)))
            asking.start()
            wait_until(lambda: server.scheduler.thinking)
            server.server.should_exit = True
            asking.join(60)
        np.testing.assert_allclose(done[0], model.encode([{"text": one} for one in texts], **options), **CLOSE)
