"""Whoever is killed in the middle, worker or driver: what was finished stays, and the vectors are the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from mmemb_r1 import MMEmbR1
from mmemb_r1.ray import embed_dataset
from mmemb_r1.ray.cluster import RETRIES, WorkerSlots
from mmemb_r1.ray.embedding import EmbeddingJob, _embedded
from mmemb_r1.ray.sources import plan_blocks
from mmemb_r1.stream import encode_stream

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS, SIZE = 1200, 100


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps(f"text {number} " + "and so on " * 20) + "\n" for number in range(ROWS)))
    return path


@pytest.fixture(scope="module")
def expected(long_corpus, tiny_checkpoint, tmp_path_factory):
    """The files of one process."""
    folder = tmp_path_factory.mktemp("one")
    inputs = [json.loads(line) for line in long_corpus.read_text().splitlines()]
    model = MMEmbR1(str(tiny_checkpoint), device="cpu")
    encode_stream(model, inputs, folder, shard_size=SIZE, file_format="parquet", reasoning="never")
    return contents(folder)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def wait_for_shards(folder, count, goes_on):
    """Wait until there are some shards, but not all; a run that ends before that has failed."""
    while (there := len(list(folder.glob("shard-*")))) < count:
        assert goes_on()
        time.sleep(0.02)
    assert there < ROWS // SIZE


def test_a_killed_worker_costs_its_block(cluster, processes, long_corpus, expected, tiny_checkpoint, tmp_path, caplog):
    killed, is_over = [], threading.Event()

    def kill():
        wait_for_shards(tmp_path / "ray", 2, lambda: not is_over.is_set())
        workers = processes("EmbedBlocks")
        workers[0].kill()
        killed.append(len(workers))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        summary = embed_dataset(
            long_corpus, tiny_checkpoint, tmp_path / "ray", shard_size=SIZE, workers=2, reasoning="never"
        )
    finally:
        is_over.set()
    killer.join()
    assert killed == [2]
    assert (summary.rows, summary.shards) == (ROWS, ROWS // SIZE)
    # at most the one that was written when its worker died, before it could tell
    assert summary.skipped <= 1
    assert contents(tmp_path / "ray") == expected


def test_a_killed_driver_is_gone_on_with(ray_home, processes, long_corpus, expected, tiny_checkpoint, tmp_path):
    command = [sys.executable, "-m", "mmemb_r1.cli", "encode", "--ray", "--ray-workers", "2"]
    command += ["--model", str(tiny_checkpoint), "--input", str(long_corpus), "--output", str(tmp_path / "ray")]
    command += ["--shard-size", str(SIZE), "--reasoning", "never"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as driver:
        wait_for_shards(tmp_path / "ray", 2, lambda: driver.poll() is None)
        workers = processes("EmbedBlocks", driver.pid)
        driver.kill()
    assert not psutil.wait_procs(workers, timeout=60)[1], "workers end with the one that started them"
    done = len(list((tmp_path / "ray").glob("shard-*")))
    assert 2 <= done < ROWS // SIZE
    assert not (tmp_path / "ray" / "index.json").exists()
    again = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert again.returncode == 0, again.stderr
    assert f"{ROWS} embeddings in" in again.stderr
    assert f"{done} of {ROWS // SIZE} shards were there already" in again.stderr
    assert contents(tmp_path / "ray") == expected


class DyingJob(EmbeddingJob):
    """A job whose model is too large for the machine."""

    def begin(self, folder, device):
        os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_never_start_end_the_run(cluster, corpus, tmp_path):
    reading = {"base": None, "column": None, "id_column": None, "protocols": ()}
    writing = {"shard_size": 16, "file_format": "parquet", "rationales": False}
    job = DyingJob(False, "org/huge", str(tmp_path / "ray"), 1, None, reading, writing, {})
    blocks = list(plan_blocks(str(corpus), 16))
    with pytest.raises(
        OSError, match=f"workers died {RETRIES + 1} times before any of them began: while org/huge was loaded.*memory"
    ):
        _embedded(blocks, job, WorkerSlots(1), False)
