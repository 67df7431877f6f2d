"""
Whether a server's memory stays where it is: half of the load that it can bear, for as long as is said.

    python -m benchmarks.serving_soak [--model DIR] [--minutes 30] [--output serving_soak.json]

Requests of 1 to 16 inputs, direct, decided and reasoned ones, a quarter of the inputs with a picture, come at random
times, at half of the rate that 64 clients reached in a minute before. One in twenty is given up by its client. Every
vector is compared with the first one that came for its input. Resident memory is read every five seconds; its growth
is that from the first tenth of the time to the last one, by the medians.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.engine.report import show, verdict
from benchmarks.facts import write_facts
from benchmarks.serving import MODES, Asked, Outcome, Served, ask, make_model, random_inputs, requests_of, served
from benchmarks.serving_load import ODDS, SIZES, TOLERANCE

MIB = 2**20
GIVEN_UP = 0.05
MOST = 0.02
KINDS = 300  # different requests, which come again and again


def made(seed: int, max_reasoning_tokens: int) -> list[Asked]:
    """Requests of all modes, each input of which has a place of its own."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice(SIZES, size=KINDS, p=ODDS).tolist()
    requests = requests_of(random_inputs(sum(sizes), seed), sizes, max_reasoning_tokens=max_reasoning_tokens)
    return [
        Asked(one.places, json.dumps({**json.loads(one.body), "reasoning": MODES[number % 3]}).encode())
        for number, one in enumerate(requests)
    ]


class Load:
    """Send requests at random times, at a rate, and compare what comes."""

    def __init__(self, port: int, requests: list[Asked], rate: float, seed: int) -> None:
        self.port, self.requests, self.rate, self.rng = port, requests, rate, np.random.default_rng(seed)
        self.first: dict[int, np.ndarray] = {}
        self.answered = self.given_up = self.failed = self.wrong = 0
        self.lock, self.next, self.stop = threading.Lock(), time.monotonic(), threading.Event()

    def turn(self) -> tuple[float, Asked, bool]:
        """When the next request is sent, which one it is, and whether its client will go away."""
        with self.lock:
            self.next += self.rng.exponential(1 / self.rate)
            return self.next, self.requests[self.rng.integers(len(self.requests))], self.rng.random() < GIVEN_UP

    def client(self) -> None:
        while not self.stop.is_set():
            when, request, leaves = self.turn()
            if self.stop.wait(max(when - time.monotonic(), 0)):
                return
            if leaves:
                self.leave(request)
            else:
                self.count(request, ask(self.port, [request], 1))

    def leave(self, request: Asked) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/embeddings", request.body, {"content-type": "application/json"})
            time.sleep(0.02)
        with self.lock:
            self.given_up += 1

    def count(self, request: Asked, outcome: Outcome) -> None:
        with self.lock:
            self.answered += not outcome.failures
            self.failed += len(outcome.failures)
            for place, vector in outcome.vectors.items():
                self.wrong += bool(np.abs(self.first.setdefault(place, vector) - vector).max() > TOLERANCE)


def soak(server: Served, args: argparse.Namespace) -> dict[str, Any]:
    requests = made(args.seed, args.max_reasoning_tokens)
    stop = threading.Event()
    threading.Timer(args.rate_seconds, stop.set).start()
    full = ask(server.port, requests, 64, stop)
    rate = len(full.latencies) / full.seconds
    load = Load(server.port, requests, rate / 2, args.seed)
    clients = [threading.Thread(target=load.client) for _ in range(64)]
    for client in clients:
        client.start()
    start, memory = time.monotonic(), []
    while time.monotonic() - start < 60 * args.minutes:
        time.sleep(5)
        memory.append(server.memory)
    load.stop.set()
    for client in clients:
        client.join()
    tenth = max(len(memory) // 10, 1)
    begin, end = float(np.median(memory[:tenth])), float(np.median(memory[-tenth:]))
    return {
        "minutes": args.minutes,
        "full_rate": rate,
        "rate": (load.answered + load.given_up) / (time.monotonic() - start),
        "answered": load.answered,
        "given_up": load.given_up,
        "failed": load.failed,
        "wrong": load.wrong,
        "begin": begin,
        "end": end,
        "most": max(memory),
        "growth": end / begin - 1,
        "memory": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint; default: an untrained one of the quickstart's size")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate-seconds", type=float, default=60, help="in which the full rate is found")
    parser.add_argument("--max-reasoning-tokens", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        make_model(folder, args.model, args.seed)
        with served(folder) as server:
            results = soak(server, args)
    counts = ("answered", "given_up", "failed", "wrong")
    row = {"minutes": f"{results['minutes']:g}", "requests / s": f"{results['rate']:.1f}"}
    row |= {name.replace("_", " "): str(results[name]) for name in counts}
    row |= {f"MiB, {name}": f"{results[name] / MIB:.0f}" for name in ("begin", "end", "most")}
    show("soak", [row], verdict("growth", results["growth"], "<= 0.02", results["growth"] <= MOST))
    if args.output is not None:
        write_facts(args.output, results, args)


if __name__ == "__main__":
    main()
