"""Servers on loopback, in this process."""

from __future__ import annotations

import base64
import contextlib
import faulthandler
import io
import json
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")


@dataclass
class Running:
    """A server that listens, and how a test asks it."""

    port: int
    server: Any
    scheduler: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str = "/v1/embeddings", body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, body and headers; a body is sent as it is, or as JSON."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = Request(self.url + path, data=data, headers={"content-type": "application/json", **headers})
        try:
            with urlopen(request, timeout=120) as response:
                status, text, sent = response.status, response.read(), response.headers
        except HTTPError as error:
            with error:
                status, text, sent = error.code, error.read(), error.headers
        is_json = sent.get("content-type", "").startswith("application/json")
        return status, json.loads(text) if is_json else text.decode(), {key.lower(): sent[key] for key in sent}

    def embed(self, inputs: Any, **fields: Any) -> dict[str, Any]:
        status, body, _ = self.ask(body={"model": "tiny", "input": inputs, **fields})
        assert status == 200, body
        return body

    def vectors(self, inputs: Any, **fields: Any) -> np.ndarray:
        return np.array([item["embedding"] for item in self.embed(inputs, **fields)["data"]], dtype=np.float32)

    def error(self, status: int, **fields: Any) -> dict[str, Any]:
        got, body, _ = self.ask(body={"model": "tiny", "input": "a", **fields})
        assert got == status, body
        return body["error"]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@contextlib.contextmanager
def running(model: Any, executor: Any = None, keys: tuple[str, ...] = (), **settings: Any):
    """Serve a model as `tiny`, as long as the block lasts."""
    from mmemb_r1.serving.running import make_server
    from mmemb_r1.serving.settings import ServerSettings

    values = {"batch_size": 8, "shutdown_seconds": 20, **settings}
    with listening(make_server(model, "tiny", ServerSettings(**values), port=0, keys=keys, executor=executor)) as made:
        yield made


@contextlib.contextmanager
def listening(server: Any):
    """Run a server that was made, as long as the block lasts."""
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    (heard,) = server.servers[0].sockets
    try:
        yield Running(heard.getsockname()[1], server, server.config.app.state.scheduler)
    finally:
        server.should_exit = True
        thread.join(60)
        if thread.is_alive():
            faulthandler.dump_traceback(sys.__stderr__)  # what it waits for
        assert not thread.is_alive()


def wait_until(is_so: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def data_url(colour: str = "red", size: int = 40) -> str:
    Image.new("RGB", (size, size), colour).save(stream := io.BytesIO(), "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


@pytest.fixture(scope="session")
def model(thinking: Any) -> Any:
    """A tiny model whose gate says yes to some inputs and no to others."""
    return thinking(max_reasoning_tokens=6, max_reasoning_rounds=2)


@pytest.fixture(scope="session")
def server(model: Any):
    with running(model) as served:
        yield served
