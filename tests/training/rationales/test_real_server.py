"""Rationales from a real OpenAI-compatible server on this machine, which is killed half-way."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training.rationales.draw import draw_rationales
from mmemb_r1.training.rationales.openai_worker import OpenAIWorker
from mmemb_r1.training.rationales.table import read_rationales
from mmemb_r1.training.rationales.worker import SIDES

NUM_PAIRS, NUM_SAMPLES, MAX_TOKENS = 6, 3, 6
NUM_ROWS = NUM_PAIRS * len(SIDES) * NUM_SAMPLES

# `transformers serve` itself. It reaches no other machine, ends with the process that holds the other end of its
# standard input, and opens pictures with PIL: torchvision's own decoder is missing where torch is a build for CPUs.
SERVE = """
import os, sys, threading
import pytest_socket
import transformers.image_processing_backends as backends
from transformers.cli.transformers import main
from transformers.image_utils import load_image

threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
pytest_socket.socket_allow_hosts(["127.0.0.1", "::1"], allow_unix_socket=True)
backends.load_image_as_tensor = load_image
main()
"""


class TransformersServer:
    """`transformers serve` with one model, on a free port that it keeps."""

    def __init__(self, model: Path, log: Path) -> None:
        self.model, self.log = model, log
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            self.port = unused.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.closed = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-c", SERVE, "serve", str(self.model), "--device", "cpu", "--host", "127.0.0.1"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def wait_until_ready(self, seconds: float = 120) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and self.process is not None and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise RuntimeError(f"the server did not start; it said: {self.log.read_text()[-2000:]}")

    def num_answers(self) -> int:
        return self.log.read_text(errors="replace").count('"POST /v1/chat/completions HTTP/1.1" 200')

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TransformersServer]:
    pytest.importorskip("fastapi", reason="`transformers serve` needs fastapi and uvicorn")
    vlm, processor = build_tiny_vlm("qwen2_5_vl")
    vlm.save_pretrained(tmp_path / "vlm")
    processor.save_pretrained(tmp_path / "vlm")
    running = TransformersServer(tmp_path / "vlm", tmp_path / "server.log")
    try:
        running.start()
        running.wait_until_ready()
        yield running
    finally:
        running.closed.set()
        running.kill()


@pytest.fixture
def pairs(tmp_path: Path) -> Dataset:
    rows = []
    for index in range(NUM_PAIRS):
        picture = tmp_path / f"{index}.png"
        Image.new("RGB", (56, 56), (40 * index, 0, 255)).save(picture)
        query = {"image": str(picture), "text": f"Which blue is it? {index}"}
        rows.append({"pair_id": f"p{index}", "task": "blue", "query": query, "target": {"text": f"Blue {index}"}})
    return Dataset.from_list(rows)


def worker_of(server: TransformersServer) -> OpenAIWorker:
    # its seeds are those of the whole process: they hold for one request at a time
    sampling = json.dumps({"do_sample": True, "min_new_tokens": MAX_TOKENS, "max_new_tokens": MAX_TOKENS})
    return OpenAIWorker(
        name="tiny",
        model=str(server.model),
        base_url=f"{server.url}/v1",
        num_samples=NUM_SAMPLES,
        max_tokens=MAX_TOKENS,
        concurrency=1,
        max_retries=1,
        patience=120,
        extra_body={"generation_config": sampling},
    )


def kill_half_way(server: TransformersServer, seen: dict[str, int]) -> None:
    before = server.num_answers()
    while server.num_answers() - before < NUM_ROWS // 2:
        if server.closed.wait(0.005):
            return
    server.kill()
    seen["answers before"] = server.num_answers() - before
    if not server.closed.wait(1):
        server.start()


@pytest.mark.slow
def test_a_server_that_is_killed_half_way_loses_and_doubles_nothing(
    server: TransformersServer, pairs: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draw_rationales(pairs, [worker_of(server)], tmp_path / "undisturbed", progress=False)
    undisturbed = read_rationales(tmp_path / "undisturbed").to_list()

    seen: dict[str, int] = {}
    killer = threading.Thread(target=kill_half_way, args=(server, seen), daemon=True)
    killer.start()
    draw_rationales(pairs, [worker_of(server)], tmp_path / "killed", shard_size=4, progress=False)
    killer.join(timeout=60)
    rows = read_rationales(tmp_path / "killed").to_list()

    assert NUM_ROWS // 2 <= seen["answers before"] < NUM_ROWS
    assert f"{server.url}/v1 is away" in caplog.text
    places = sorted((row["pair_id"], row["side"], row["sample"]) for row in rows)
    assert places == sorted(
        (f"p{index}", side, sample) for index in range(NUM_PAIRS) for side in SIDES for sample in range(NUM_SAMPLES)
    )
    assert {row["error"] for row in rows} == {None}
    assert {(row["finish_reason"], row["num_tokens"]) for row in rows} == {("length", MAX_TOKENS)}
    assert all(row["text"] for row in rows)
    assert len({row["text"] for row in rows}) > NUM_SAMPLES  # they were drawn, not looked up
    key = ("pair_id", "side", "sample")
    assert sorted(rows, key=lambda row: [row[name] for name in key]) == sorted(
        undisturbed, key=lambda row: [row[name] for name in key]
    )
