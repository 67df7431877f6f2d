"""`mmemb-r1 serve --engine` gives clients what the local model gives, also when a server of vLLM is killed."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import Any

import numpy as np
import pytest

from benchmarks.serving import Asked, Outcome, Served, ask, random_inputs, requests_of, served
from mmemb_r1 import MMEmbR1

RELATIVE = 1e-3  # of vectors
CLOSE = 1e-3  # gate probabilities that are nearer to the threshold may be on the other side
MODES: list[dict[str, Any]] = [
    {"reasoning": "never"},
    {"reasoning": "always"},
    {"reasoning": "auto"},
    {"reasoning": "always", "max_reasoning_rounds": 2, "max_reasoning_tokens": 5},
]
CLIENTS = 8
IN_PROCESS = ("dtype=float32", "enforce_eager=true", "max_model_len=1024", "max_num_seqs=16")


class Load:
    """Forty inputs in requests of one to four, each in a mode, and the vectors that the local model gives."""

    def __init__(self, model: MMEmbR1, times: int = 1) -> None:
        values = random_inputs(40, seed=7, pictures=0.3, pixels=56)
        explained = [model.explain(values, task="query", **mode) for mode in MODES]
        threshold = model[0].model.config.gate_threshold
        self.requests: list[Asked] = []
        self.wanted: dict[int, np.ndarray] = {}
        self.reasoned = 0
        for number, request in enumerate(requests_of(values, [1, 2, 3, 4] * 4 * times)):
            mode = number % len(MODES)
            body = {**json.loads(request.body), **MODES[mode]}
            self.requests.append(Asked(request.places, json.dumps(body).encode()))
            for place in request.places:
                right = explained[mode][place % len(values)]
                if MODES[mode]["reasoning"] != "auto" or abs(right["gate_prob"] - threshold) > CLOSE:
                    self.wanted[place] = right["embedding"]
                    self.reasoned += right["reasoned"]

    def require_right(self, outcome: Outcome) -> None:
        assert outcome.failures == []
        assert len(outcome.vectors) == sum(len(request.places) for request in self.requests)
        for place, vector in self.wanted.items():
            error = np.linalg.norm(outcome.vectors[place] - vector)
            assert error <= RELATIVE * np.linalg.norm(vector), (place, error)


def answered(server: Served) -> float:
    """Count the inputs that a server has answered."""
    found = re.findall(rb"^mmemb_r1_inputs_total\{.*\} ([\d.e+]+)$", server.get("/metrics")[1], re.MULTILINE)
    return sum(map(float, found))


@pytest.mark.parametrize("engine", ["servers", "in process"])
def test_forty_inputs_of_eight_clients(request, vllm_model, vllm_folder, engine):
    load = Load(vllm_model)
    assert len(load.wanted) > 30 and 10 < load.reasoned < 35
    options = ("--engine", "vllm", "--engine-options", *IN_PROCESS)
    if engine == "servers":
        reads, writes = map(request.getfixturevalue, ("pooling_server", "generating_server"))
        options = ("--engine", f"{reads.root},{writes.url}")
    with served(vllm_folder, *options, "--batch-size", "8") as server:
        load.require_right(ask(server.port, load.requests, CLIENTS))
        too_long = json.dumps({"model": "model", "input": ["a", "word " * 1300], "reasoning": "never"}).encode()
        (failure,) = ask(server.port, [Asked([0, 1], too_long)], 1).failures
        assert failure.startswith("400") and "Input 1" in failure and "refuses it" in failure
        load.require_right(ask(server.port, load.requests, CLIENTS))
        assert server.get("/ready")[0] == 200
        server.process.terminate()
        assert server.process.wait(120) == 0


def test_a_server_that_is_killed_is_waited_for(vllm_model, vllm_folder, generating_server, start_server):
    load = Load(vllm_model, times=6)
    reads = start_server(vllm_folder, "--runner=pooling", "--convert=embed")
    options = ("--engine", f"{reads.root},{generating_server.url}", "--engine-options", "patience=600")
    with served(vllm_folder, *options, "--batch-size", "4") as server:
        outcomes: list[Outcome] = []
        asking = threading.Thread(target=lambda: outcomes.append(ask(server.port, load.requests, CLIENTS)))
        before = answered(server)
        asking.start()
        while answered(server) < before + 20:
            time.sleep(0.02)
        reads.kill()
        assert asking.is_alive(), "all was answered before the server was killed"
        reads.start()
        asking.join(600)
        load.require_right(outcomes[0])
        assert server.get("/ready")[0] == 200
