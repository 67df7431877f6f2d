"""`serve deploy examples/ray-serve.yaml` on a running cluster: replicas answer, and those that die are replaced."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml
from openai import OpenAI, OpenAIError

import mmemb_r1
from mmemb_r1 import MMEmbR1

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
BIN = Path(sys.executable).parent
INPUTS = ["a red square", "what?", "a much longer text about a river and a city"]
PATIENCE = 300  # seconds until something is taken for stuck


def free_port():
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Cluster:
    """A Ray cluster of one machine, as `ray start` makes it; what `serve` says of it."""

    def __init__(self, folder):
        self.ports = [free_port() for _ in range(2)]
        address = f"http://127.0.0.1:{self.ports[1]}"
        self.environment = {
            **os.environ,
            "RAY_DASHBOARD_ADDRESS": address,
            "RAY_ADDRESS": f"127.0.0.1:{self.ports[0]}",
        }
        self.environment |= {"RAY_AUTH_MODE": "token", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
        self.environment["PYTHONPATH"] = str(Path(mmemb_r1.__file__).absolute().parents[1])  # in any folder
        command = [BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=3"]
        command += ["--object-store-memory=100000000", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
        command += [f"--port={self.ports[0]}", f"--dashboard-port={self.ports[1]}", "--disable-usage-stats"]
        with Path(folder, "head.log").open("wb") as log:
            environment = {key: value for key, value in self.environment.items() if key != "RAY_ADDRESS"}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def serve(self, *arguments):
        return subprocess.run(
            [BIN / "serve", *arguments], capture_output=True, text=True, env=self.environment, check=False
        )

    def wait(self, what, is_so):
        """Wait until `is_so(what serve status says)`."""
        end = time.monotonic() + PATIENCE
        while True:
            told = self.serve("status")
            status = yaml.safe_load(told.stdout) if told.returncode == 0 else None
            if status and is_so(status):
                return status
            assert self.process.poll() is None
            assert time.monotonic() < end, f"{what}: {told.stdout}{told.stderr}"
            time.sleep(0.5)


@pytest.fixture
def head(ray_home):
    """A cluster of its own: `serve` talks to one that runs."""
    with tempfile.TemporaryDirectory(prefix="mray-") as folder:
        cluster = Cluster(folder)
        try:
            yield cluster
        finally:
            cluster.process.terminate()
            cluster.process.wait()


def replicas(status):
    return status["applications"]["mmemb-r1"]["deployments"]["mmemb-r1"]["replica_states"]


def is_up(status):
    application = status["applications"].get("mmemb-r1", {"status": "NOT_STARTED"})
    assert application["status"] != "DEPLOY_FAILED", application
    return application["status"] == "RUNNING" and replicas(status) == {"RUNNING": 2}


class Clients:
    """Ask from several threads until told to stop, as the `openai` package does; note what was not right."""

    def __init__(self, url, expected, count=3):
        self.url, self.expected = url, expected
        self.answers, self.faults, self.is_over = 0, [], threading.Event()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.ask, daemon=True) for _ in range(count)]

    def ask(self):
        client = OpenAI(base_url=f"{self.url}/v1", api_key="none")
        while not self.is_over.is_set():
            try:
                answer = client.embeddings.create(
                    model="tiny", input=INPUTS, extra_body={"reasoning": "never", "input_type": "query"}
                )
                vectors = np.array([row.embedding for row in answer.data], dtype=np.float32)
                np.testing.assert_allclose(vectors, self.expected, atol=1e-6)
            except (OpenAIError, AssertionError) as error:
                self.faults.append(repr(error))
            with self.lock:
                self.answers += 1

    def wait(self, more):
        """Wait for more answers, good or bad."""
        wanted = self.answers + more
        while self.answers < wanted:
            assert not self.faults
            time.sleep(0.05)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self.is_over.set()
        for thread in self.threads:
            thread.join()


def test_the_file_is_deployed_and_a_killed_replica_is_replaced(head, root, processes, tiny_checkpoint, tmp_path):
    port = free_port()
    written = yaml.safe_load((root / "examples" / "ray-serve.yaml").read_text(encoding="utf-8"))
    written["http_options"]["port"] = port
    (application,) = written["applications"]
    application["args"] |= {"model": str(tiny_checkpoint), "name": "tiny"}
    application["deployments"][0]["autoscaling_config"]["min_replicas"] = 2
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(written))
    head.wait("the cluster", lambda status: True)
    told = head.serve("deploy", str(tmp_path / "serve.yaml"))
    assert told.returncode == 0, told.stderr
    head.wait("the application", is_up)
    before = {one.pid: one for one in processes("ServeReplica", head.process.pid)}
    assert len(before) == 2
    expected = MMEmbR1(str(tiny_checkpoint), device="cpu").encode(INPUTS, reasoning="never")
    with Clients(f"http://127.0.0.1:{port}", expected) as clients:
        clients.wait(10)
        killed = min(before)
        before[killed].kill()
        head.wait("another replica", lambda status: is_up(status) and len(alive(head, processes) - {killed}) == 2)
        clients.wait(10)
        after = alive(head, processes)
    assert clients.faults == []
    assert len(after) == 2
    assert len(after & set(before)) == 1, "the other one went on"
    told = head.serve("shutdown", "--yes")
    assert told.returncode == 0, told.stderr
    head.wait("the end", lambda status: not status["applications"])


def alive(head, processes):
    return {one.pid for one in processes("ServeReplica", head.process.pid)}
