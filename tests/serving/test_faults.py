"""Hostile clients, a signal under load and a model that fails: no wrong vector, no crash, memory back to its level."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import signal
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from tests.serving.conftest import data_url, running

from benchmarks.serving import Asked, ask, random_inputs, requests_of, served
from mmemb_r1 import MMEmbR1
from mmemb_r1.serving.local import LocalExecutor

logger = logging.getLogger(__name__)
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
CLOSE = {"atol": 1e-6, "rtol": 0}


def post(body):
    return HEAD + b"content-length: %d\r\n\r\n" % len(body) + body


def request(**fields):
    return post(json.dumps({"model": "model", "input": "a", **fields}).encode())


def picture_bomb(rng):
    edge = int(rng.integers(9_000, 30_000))
    Image.new("1", (edge, 40)).save(stream := io.BytesIO(), "PNG")
    data = bytearray(stream.getvalue())
    data[20:24] = struct.pack(">L", edge)  # it says that it is as high as wide
    return request(input={"image": "data:image/png;base64," + base64.b64encode(bytes(data)).decode()})


def damaged_media(rng):
    data = bytearray(base64.b64decode(data_url().partition(",")[2]))
    for place in rng.integers(0, len(data), size=8):
        data[place] = int(rng.integers(256))
    kind = ("image/png", "image/gif", "video/mp4")[int(rng.integers(3))]
    url = f"data:{kind};base64," + base64.b64encode(bytes(data)).decode()
    return request(input={kind.partition("/")[0]: url})


def wrong_types(rng):
    names = ("model", "input", "dimensions", "encoding_format", "reasoning", "explain", "max_latency_ms", "priority")
    values = (None, -1, 1e308, 10**40, [], {}, [[[]]], "\ud800", "x" * 5000, True, {"a": 1}, [1, "a"], [{}], "1")
    fields = {
        names[int(name)]: values[int(value)]
        for name, value in zip(rng.integers(len(names), size=3), rng.integers(len(values), size=3), strict=True)
    }
    return request(**fields)


def bad_json(rng):
    body = b'{"model": "model", "input": "a"}'
    bodies = (
        rng.bytes(200), body[: int(rng.integers(len(body)))], b"[" * 50_000, b'{"a":' * 20_000, body + body,
        b"\x1f\x8b" + rng.bytes(99), b'{"model": "model", "input": NaN}', b'{"model": "model", "input": "\xff"}',
    )  # fmt: skip
    return post(bodies[int(rng.integers(len(bodies)))])


def no_http(rng):
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", rng.bytes(500), b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        HEAD + b"x: " + b"y" * 100_000 + b"\r\n\r\n", HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"DELETE /v1/embeddings HTTP/1.1\r\nhost: a\r\n\r\n", b"GET /../../secret HTTP/1.1\r\nhost: a\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    )[int(rng.integers(8))]  # fmt: skip


def too_much(rng):
    text = "word " * int(rng.integers(60_000, 400_000))
    return (
        request(input=text), request(input=["a"] * 3000), request(input=[[1] * 1000] * 100),
        request(input={"image": [data_url()] * 200}), request(max_reasoning_tokens=10**9, reasoning="always"),
        request(input=[{"role": "user", "content": [{"type": "text", "text": text}]}]),
    )[int(rng.integers(6))]  # fmt: skip


def gigabyte(connection, rng):
    """Send a body of 1 GiB, as far as the server reads it."""
    says = HEAD + (
        b"content-length: 1073741824\r\n\r\n" if rng.random() < 0.5 else b"transfer-encoding: chunked\r\n\r\n"
    )
    connection.sendall(says)
    part = b"x" * 2**20 if b"length" in says else b"100000\r\n" + b"x" * 2**20 + b"\r\n"
    for _ in range(1024):
        connection.sendall(part)


def leaves(connection, rng):
    """Go away at any stage: of the headers, the body, the waiting, the answer."""
    whole = request(input=[f"text {number}" for number in range(50)], reasoning="always", max_reasoning_tokens=300)
    stage = rng.random()
    connection.sendall(whole[: int(len(whole) * stage * 2)])
    time.sleep(float(rng.random()) * 0.3)
    if rng.random() < 0.5:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def trickles(connection, rng):
    """A slow loris: a byte now and then, of the headers or of the body."""
    data = request() if rng.random() < 0.5 else HEAD
    for byte in data[:60]:
        connection.sendall(bytes([byte]))
        time.sleep(0.1)


SENT = (picture_bomb, damaged_media, wrong_types, bad_json, no_http, too_much)
DONE = (gigabyte, leaves, trickles)


def hostile(port, number, seed):
    """One hostile client; the status of an answer that is not right, and what was sent for it."""
    rng = np.random.default_rng([seed, number])
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        kinds = (*SENT, *DONE)
        kind = kinds[number % len(kinds)]
        if kind in DONE:
            kind(connection, rng)
            return None
        connection.sendall(kind(rng))
        answer = connection.recv(100)
        allowed = {b"400", b"404", b"405", b"413", b"429"}
        if kind in (damaged_media, wrong_types):  # not all of them are wrong
            allowed |= {b"200"}
        return None if not answer or answer[9:12] in allowed else (kind.__name__, answer)
    return None


@pytest.fixture(scope="module")
def checkpoint(thinking, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "model"
    thinking(max_reasoning_tokens=8).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def good(checkpoint):
    """Requests of every kind, and the vectors that `encode` gives."""
    model = MMEmbR1(str(checkpoint), device="cpu")
    values = random_inputs(60, seed=3, pixels=32)
    sizes = [1, 2, 3, 4] * 6
    made, vectors = [], {}
    for number, request_ in enumerate(requests_of(values, sizes)):
        mode = ("never", "always", "auto")[number % 3]
        body = {**json.loads(request_.body), "reasoning": mode}
        made.append(Asked(request_.places, json.dumps(body).encode()))
        encoded = model.encode_query([values[place] for place in request_.places], reasoning=mode)
        vectors |= dict(zip(request_.places, encoded, strict=True))
    return made, vectors


def require_right(outcome, vectors):
    assert not outcome.failures
    for place, vector in outcome.vectors.items():
        np.testing.assert_allclose(vector, vectors[place], **CLOSE)


@pytest.mark.slow
def test_hostile_clients_hurt_nobody(checkpoint, good):
    made, vectors = good
    limits = ("--header-seconds", "4", "--body-seconds", "5", "--idle-seconds", "20", "--write-seconds", "5")
    with served(checkpoint, *limits) as server:
        levels = []
        for seed in range(3):  # the first one warms up
            stop, outcomes = threading.Event(), []
            polite = threading.Thread(target=lambda: outcomes.append(ask(server.port, made, 3, stop)))  # noqa: B023
            polite.start()
            with ThreadPoolExecutor(12) as pool:
                odd = list(pool.map(lambda number: hostile(server.port, number, seed), range(200)))  # noqa: B023
            stop.set()
            polite.join()
            require_right(outcomes[0], vectors)
            assert len(outcomes[0].latencies) > 10
            assert [one for one in odd if one is not None] == []
            require_right(ask(server.port, made, 3), vectors)
            levels.append(server.memory)
        assert server.get("/health")[0] == 200
        logger.info("resident MiB after each 200 hostile requests: %s", [level // 2**20 for level in levels])
        assert levels[-1] < 1.05 * levels[0]


@pytest.mark.slow
def test_a_signal_under_load_ends_the_server_when_all_are_answered(checkpoint):
    model = MMEmbR1(str(checkpoint), device="cpu")
    values, options = random_inputs(24, seed=5, pixels=32), {"reasoning": "always", "max_reasoning_tokens": 200}
    wanted = model.encode_query(values, **options)
    with served(checkpoint) as server:
        outcomes = []
        asking = threading.Thread(
            target=lambda: outcomes.append(ask(server.port, requests_of(values, [1] * 24, **options), 24))
        )
        asking.start()
        while b"mmemb_r1_inputs_thinking 24.0" not in server.get("/metrics")[1]:
            assert asking.is_alive(), "they were answered too soon"
        server.process.send_signal(signal.SIGTERM)
        asking.join(120)
        assert server.process.wait(60) == 0
    require_right(outcomes[0], dict(enumerate(wanted)))
    assert len(outcomes[0].vectors) == 24


class Failing(LocalExecutor):
    """Fails at random, and then works again, as where memory runs out now and then."""

    rng = np.random.default_rng(0)
    armed = False

    def read(self, rows):
        if self.armed and self.rng.random() < 0.1:
            raise RuntimeError("out of memory")
        return super().read(rows)

    def step(self):
        if self.armed and self.rng.random() < 0.02:
            raise RuntimeError("out of memory")
        return super().step()


def test_a_model_that_fails_now_and_then_gives_no_wrong_vector(model):
    texts = [f"text {number}" for number in range(120)]
    modes = ("never", "always", "auto")
    wanted = [model.encode_query(texts, reasoning=mode) for mode in modes]
    executor = Failing(model, max_input_tokens=1000)
    with running(model, executor) as server:
        executor.armed = True

        def one(number):
            mode = number % 3
            body = {"model": "tiny", "input": texts[number], "reasoning": modes[mode], "input_type": "query"}
            status, answer, _ = server.ask(body=body)
            if status != 200:
                assert status == 500 and answer["error"]["type"] == "server_error", answer
                return False
            np.testing.assert_allclose(answer["data"][0]["embedding"], wanted[mode][number], **CLOSE)
            return True

        with ThreadPoolExecutor(12) as pool:
            right = sum(pool.map(one, range(120)))
        executor.armed = False
        assert right >= 60 and one(0) and server.ask("/health")[0] == 200
        assert not server.scheduler._tickets
