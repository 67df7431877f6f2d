"""Clients that are slow, too large, too many or gone hurt nobody else."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from contextlib import suppress

import pytest
from tests.serving.conftest import running, wait_until

from mmemb_r1.serving.local import LocalExecutor

HEAD = b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"


def request(body):
    return HEAD + b"content-length: %d\r\n\r\n" % len(body) + body


def received(connection, seconds=30):
    """All that comes until the server closes the connection."""
    connection.settimeout(seconds)
    data = b""
    try:
        while part := connection.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


class SlowExecutor(LocalExecutor):
    """Takes its time for each step, so that what thinks long is still there when a test looks."""

    def step(self):
        time.sleep(0.01)
        return super().step()


@pytest.fixture(scope="module")
def strict(model):
    """A server with limits that a test reaches at once."""
    limits = {"max_body_bytes": 100_000, "header_seconds": 0.4, "body_seconds": 0.6, "idle_seconds": 1}
    executor = SlowExecutor(model, max_input_tokens=16_384)
    with running(model, executor, write_seconds=0.5, max_connections=20, **limits) as server:
        yield server


def is_alive(server):
    return len(server.vectors(["a"])) == 1


def given_up(server):
    """Count the requests that nobody waited for."""
    found = re.findall(r'requests_total{status="499"} ([\d.]+)', server.ask("/metrics")[1])
    return float(found[0]) if found else 0.0


def test_a_body_that_says_it_is_too_large_is_not_read(strict):
    with strict.connect() as connection:
        connection.sendall(HEAD + b"expect: 100-continue\r\ncontent-length: 1073741824\r\n\r\n")
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 413") and b"connection: close" in answer.lower()
    assert b"more than 100000 bytes, which this server allows" in answer


def test_a_body_that_is_too_large_and_does_not_say_so(strict):
    with strict.connect() as connection:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        with suppress(BrokenPipeError):  # it may have answered and closed before all is sent
            for _ in range(30):
                connection.sendall(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
        assert received(connection).startswith(b"HTTP/1.1 413")
    assert is_alive(strict)


def test_a_body_that_does_not_come_is_not_waited_for(strict):
    with strict.connect() as connection:
        connection.sendall(HEAD + b"content-length: 100\r\n\r\n{")
        assert received(connection).startswith(b"HTTP/1.1 408")
    assert is_alive(strict)


@pytest.mark.parametrize("first", [b"", b"POST /v1/emb", HEAD])
def test_headers_that_do_not_come_are_not_waited_for(strict, first):
    with strict.connect() as connection:
        connection.sendall(first)
        assert received(connection, 10) == b""


def test_headers_that_trickle_on_a_connection_that_was_used(strict):
    """uvicorn's timer between requests ends with the first byte of the next one."""
    with strict.connect() as connection:
        connection.sendall(request(b"{}"))
        data = b""
        while not data.endswith(b"}}"):
            data += connection.recv(65536)
        assert data.startswith(b"HTTP/1.1 400")
        connection.sendall(b"POST /v1")
        assert received(connection, 10) == b""


def test_requests_one_after_the_other_on_one_connection(strict):
    body = json.dumps({"model": "tiny", "input": "a"}).encode()
    with strict.connect() as connection:
        connection.sendall(request(body) * 3)
        data = b""
        while data.count(b'"object":"list"') < 3:
            part = connection.recv(65536)
            assert part
            data += part
    assert data.count(b"HTTP/1.1 200 OK") == 3


def test_who_takes_no_answer_is_left(strict):
    """A large answer to a client that does not read: its memory is freed."""
    body = json.dumps({"model": "tiny", "input": ["a"] * 1500, "reasoning": "never"}).encode()
    connections = []
    for _ in range(3):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", strict.port))
        connection.sendall(request(body) * 8)
        connections.append(connection)
    wait_until(
        lambda: not any(one.transport.get_write_buffer_size() for one in strict.server.server_state.connections)
    )
    for connection in connections:
        connection.close()
    assert is_alive(strict)


def test_a_client_that_goes_away_gives_its_rows_up(strict):
    before, fields = given_up(strict), {"reasoning": "always", "max_reasoning_tokens": 1000}
    body = json.dumps({"model": "tiny", "input": ["a", "b"], **fields}).encode()
    connection = strict.connect()
    connection.sendall(request(body))
    wait_until(lambda: strict.scheduler.thinking == 2)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
    connection.close()
    wait_until(lambda: strict.scheduler.thinking == 0 and not strict.scheduler._tickets)
    wait_until(lambda: given_up(strict) == before + 1)


def test_more_connections_than_are_allowed(strict):
    connections = [strict.connect() for _ in range(20)]
    wait_until(lambda: len(strict.server.server_state.connections) >= 20)
    with strict.connect() as one_more:
        assert received(one_more).startswith(b"HTTP/1.1 503")
    for connection in connections:
        connection.close()
    wait_until(lambda: len(strict.server.server_state.connections) < 20)
    assert is_alive(strict)


@pytest.mark.parametrize(
    "data", [b"\0\1\2", b"GET / HTTP/9\r\n\r\n", b"a" * 200_000, HEAD + b"content-length: -1\r\n\r\n"]
)
def test_what_is_no_http(strict, data):
    with strict.connect() as connection:
        try:
            connection.sendall(data)
        except ConnectionError:
            pass
        answer = received(connection, 10)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert is_alive(strict)
