"""Start a server as a user does, and ask it as many clients do."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.random_pairs import loaded, words
from mmemb_r1 import MMEmbR1

MODES = ("never", "auto", "always")


def make_model(folder: Path, source: str | None, seed: int) -> MMEmbR1:
    """Save a checkpoint, or an untrained model of the quickstart's size whose gate has random weights, and load it."""
    model, processor = loaded(source, seed)
    gate = model.gate.output
    if not bool(gate.weight.any()):
        torch.nn.init.normal_(gate.weight, std=0.02, generator=torch.Generator().manual_seed(seed))
    MMEmbR1.from_model(model, processor).save_pretrained(str(folder))
    return MMEmbR1(str(folder), device="cpu")


@dataclass
class Served:
    """A server in a process of its own."""

    port: int
    process: psutil.Process

    @property
    def cpu_seconds(self) -> float:
        """What it and its processes have used."""
        times = [one.cpu_times() for one in (self.process, *self.process.children(recursive=True))]
        return sum(one.user + one.system for one in times)

    @property
    def memory(self) -> int:
        """Bytes that are resident."""
        return self.process.memory_info().rss

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()


@contextlib.contextmanager
def served(folder: Path, *options: str, threads: int = 1) -> Iterator[Served]:
    """Run `mmemb-r1 serve` on a checkpoint, as `model`, as long as the block lasts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mmemb_r1.cli", "serve", str(folder), "--name", "model", "--port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen([*command, "--device", "cpu", *options], stderr=log, stdout=log, env=environment)
        try:
            server = Served(port, psutil.Process(child.pid))
            while not _is_ready(server):
                if child.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(f"the server did not start: {log.read().decode()[-2000:]}")
                time.sleep(0.2)
            yield server
        finally:
            child.terminate()
            child.wait(120)


def _is_ready(server: Served) -> bool:
    try:
        return server.get("/ready")[0] == 200
    except OSError:
        return False


@dataclass
class Asked:
    """What one client sends: its inputs as the model takes them, and the body."""

    places: list[int]  # of its inputs among all
    body: bytes


@dataclass
class Outcome:
    """What came of all requests."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    vectors: dict[int, np.ndarray] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def percentiles(self) -> dict[str, float]:
        return {f"p{q}": float(np.percentile(self.latencies, q)) for q in (50, 95, 99)}


def random_inputs(count: int, seed: int, pictures: float = 0.25, pixels: int = 64) -> list[Any]:
    """Texts of 1 to 60 words, most of them short, and a share with a picture."""
    rng, known = np.random.default_rng(seed), words(seed)
    values: list[Any] = []
    for number in range(count):
        length = int(np.clip(rng.lognormal(2.2, 0.8), 1, 60))
        text = " ".join([*rng.choice(known, size=length), str(number)])
        if rng.random() < pictures:
            array = rng.integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)
            Image.fromarray(array).save(stream := io.BytesIO(), "PNG")
            url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
            values.append({"text": text, "image": url})
        else:
            values.append({"text": text})
    return values


def requests_of(values: Sequence[Any], sizes: Sequence[int], **fields: Any) -> list[Asked]:
    """Make requests of so many inputs each."""
    asked, start = [], 0
    for size in sizes:
        places = list(range(start, start + size))
        sent = [values[place % len(values)] for place in places]
        body = {"model": "model", "input": sent, "encoding_format": "base64", "input_type": "query", **fields}
        asked.append(Asked(places, json.dumps(body).encode()))
        start += size
    return asked


def ask(port: int, requests: Sequence[Asked], clients: int, stop: threading.Event | None = None) -> Outcome:
    """
    Let so many clients send requests, each its next when it has an answer. A 429 is waited for as the answer says.

    Args:
        port: of the server.
        requests: all of them; with `stop`, over and over.
        clients: at once.
        stop: ends it early.
    """
    outcome, lock, turns = Outcome(), threading.Lock(), iter(range(10**9))

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        with contextlib.closing(connection):
            while True:
                with lock:
                    turn = next(turns)
                if (stop is None and turn >= len(requests)) or (stop is not None and stop.is_set()):
                    return
                request = requests[turn % len(requests)]
                start = time.perf_counter()
                status, body = _post(connection, request.body)
                seconds = time.perf_counter() - start
                with lock:
                    outcome.latencies.append(seconds)
                    if status == 200:
                        outcome.vectors |= _vectors(request, body)
                    else:
                        outcome.failures.append(f"{status} {body[:200]!r}")

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.seconds = time.perf_counter() - start
    return outcome


def _post(connection: http.client.HTTPConnection, body: bytes) -> tuple[int, bytes]:
    while True:
        try:
            answer, response = _posted(connection, body)
        except ConnectionError:  # the server closes a connection that was idle, perhaps just now
            connection.close()
            answer, response = _posted(connection, body)
        if response.status != 429:
            return response.status, answer
        time.sleep(float(response.headers["retry-after"]))


def _posted(connection: http.client.HTTPConnection, body: bytes) -> tuple[bytes, http.client.HTTPResponse]:
    connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
    response = connection.getresponse()
    return response.read(), response


def _vectors(request: Asked, body: bytes) -> dict[int, np.ndarray]:
    items = json.loads(body)["data"]
    vectors = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in items]
    return dict(zip(request.places, vectors, strict=True))
