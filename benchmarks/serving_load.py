"""
What a server does under load, beside the same model without a server, in one run on one CPU thread each:

    python -m benchmarks.serving_load [--model DIR] [--requests 5000] [--clients 64] [--prepare-processes 1]

1. `--requests` requests of 1 to 16 inputs, a quarter of these with a picture, are sent by `--clients` clients, each of
   which sends its next one when it has an answer; the gate lets a quarter of the inputs think. The same inputs are
   embedded by `encode`, and every vector that came is compared. Then a tenth of the requests goes to a server that
   reads one input at a time.
2. Clients that ask for direct vectors, alone, and beside others that let everything think.

Throughput is told by the clock, and by the seconds that the processes were at work (CPU): on a machine that others
use, too, only the latter compares. The clients' own work is counted in neither.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.auto_mixture import threshold_of
from benchmarks.engine.report import show, verdict
from benchmarks.facts import write_facts
from benchmarks.serving import Outcome, Served, ask, make_model, random_inputs, requests_of, served
from mmemb_r1 import MMEmbR1

SIZES, ODDS = (1, 2, 4, 16), (0.6, 0.2, 0.15, 0.05)
TOLERANCE = 1e-5
ENOUGH, MOST = 0.8, 2.0


def measured(server: Served, requests: list[Any], clients: int) -> tuple[Outcome, float]:
    """Send requests; what came of them, and the server's CPU seconds."""
    before = server.cpu_seconds
    outcome = ask(server.port, requests, clients)
    return outcome, server.cpu_seconds - before


def prepared_by(args: argparse.Namespace) -> list[str]:
    """The option of processes that prepare inputs."""
    return ["--prepare-processes", str(args.prepare_processes)] if args.prepare_processes else []


def against_encode(folder: Path, model: MMEmbR1, args: argparse.Namespace) -> dict[str, Any]:
    """The first part."""
    rng = np.random.default_rng(args.seed)
    sizes = rng.choice(SIZES, size=args.requests, p=ODDS).tolist()
    values = random_inputs(sum(sizes), args.seed)
    some = model.encode(values[:512], reasoning="never", output_value=None)
    threshold = threshold_of(np.array([float(row["gate_prob"]) for row in some]), args.share)
    options = {"reasoning": "auto", "gate_threshold": threshold, "max_reasoning_tokens": args.max_reasoning_tokens}
    requests = requests_of(values, sizes, **options)
    with served(folder, *prepared_by(args)) as server:
        ask(server.port, requests[:64], args.clients)
        outcome, cpu = measured(server, requests, args.clients)
    clock, start = time.process_time(), time.perf_counter()
    wanted = model.encode_query(values, show_progress_bar=False, **options)
    offline, offline_cpu = time.perf_counter() - start, time.process_time() - clock
    few = requests[: max(len(requests) // 10, 1)]
    count = sum(len(request.places) for request in few)
    with served(folder, "--batch-size", "1", "--decode-batch-size", "1") as server:
        plain, plain_cpu = measured(server, few, args.clients)
    away = [float(np.abs(vector - wanted[place]).max()) for place, vector in outcome.vectors.items()]
    rows = [
        {"": "server", "inputs": len(values), "seconds": outcome.seconds, "cpu": cpu, **outcome.percentiles()},
        {"": "encode", "inputs": len(values), "seconds": offline, "cpu": offline_cpu},
        {"": "server, one by one", "inputs": count, "seconds": plain.seconds, "cpu": plain_cpu, **plain.percentiles()},
    ]
    return {
        "rows": rows,
        "requests": args.requests,
        "threshold": threshold,
        "lost": len(values) - len(outcome.vectors),
        "failed": len(outcome.failures),
        "wrong": sum(one > TOLERANCE for one in away),
        "farthest": max(away),
        "of_encode": offline / outcome.seconds,
        "of_encode_cpu": offline_cpu / cpu,
        "of_one_by_one_cpu": (plain_cpu / count) / (cpu / len(values)),
    }


def beside_thinkers(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The second part."""
    values = random_inputs(512, args.seed + 1)
    direct = requests_of(values, [1] * args.direct_requests, reasoning="never")
    thinking = requests_of(values, [1] * 512, reasoning="always", max_reasoning_tokens=args.max_reasoning_tokens)
    with served(folder, *prepared_by(args)) as server:
        ask(server.port, direct[:64], args.direct_clients)
        rounds = []
        for _ in range(args.rounds):
            alone = ask(server.port, direct, args.direct_clients)
            stop, others = threading.Event(), list[Outcome]()
            load = threading.Thread(
                target=lambda stop=stop, others=others: others.append(
                    ask(server.port, thinking, args.thinking_clients, stop)
                )
            )
            load.start()
            time.sleep(2)
            beside = ask(server.port, direct, args.direct_clients)
            stop.set()
            load.join()
            rounds.append(
                {
                    "alone": alone.percentiles(),
                    "beside": beside.percentiles(),
                    "thought": len(others[0].latencies),
                    "failed": len(alone.failures) + len(beside.failures) + len(others[0].failures),
                }
            )
    ratios = [one["beside"]["p95"] / one["alone"]["p95"] for one in rounds]
    return {"rounds": rounds, "ratio": float(np.median(ratios)), "ratios": ratios}


def show_load(results: dict[str, Any]) -> None:
    rows = []
    for row in results["rows"]:
        told = {"": row[""], "inputs": f"{row['inputs']:,}", "time": f"{row['seconds']:.1f} s"}
        told["inputs / s"] = f"{row['inputs'] / row['seconds']:.0f}"
        told["CPU"] = f"{row['cpu']:.1f} s"
        told["inputs / CPU s"] = f"{row['inputs'] / row['cpu']:.0f}"
        told |= {name: f"{row[name]:.3f} s" if name in row else "-" for name in ("p50", "p95", "p99")}
        rows.append(told)
    show(
        f"{results['requests']} requests",
        rows,
        f"lost {results['lost']}, failed {results['failed']}, wrong {results['wrong']}; farthest vector "
        f"{results['farthest']:.1e}",
        verdict(
            "throughput of encode's, by the clock", results["of_encode"], ">= 0.8", results["of_encode"] >= ENOUGH
        ),
        verdict("by CPU seconds", results["of_encode_cpu"], ">= 0.8", results["of_encode_cpu"] >= ENOUGH),
        f"of the server that reads one by one, by CPU seconds: {results['of_one_by_one_cpu']:.2f}",
    )


def show_beside(results: dict[str, Any]) -> None:
    rows = [
        {
            "round": str(number),
            **{
                f"{which} {q}": f"{one[which][q] * 1000:.0f} ms" for which in ("alone", "beside") for q in one["alone"]
            },
            "thought beside": str(one["thought"]),
            "failed": str(one["failed"]),
        }
        for number, one in enumerate(results["rounds"], 1)
    ]
    note = verdict("p95 beside thinkers, of that alone (median)", results["ratio"], "<= 2", results["ratio"] <= MOST)
    show("direct requests", rows, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint; default: an untrained one of the quickstart's size")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--share", type=float, default=0.25, help="of the inputs that think")
    parser.add_argument("--max-reasoning-tokens", type=int, default=16)
    parser.add_argument("--direct-requests", type=int, default=600, help="of the second part")
    parser.add_argument("--direct-clients", type=int, default=16)
    parser.add_argument("--thinking-clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prepare-processes", type=int, help="of the server; default: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        model = make_model(folder, args.model, args.seed)
        load = against_encode(folder, model, args)
        show_load(load)
        beside = beside_thinkers(folder, args)
        show_beside(beside)
    if args.output is not None:
        write_facts(args.output, {"load": load, "beside": beside}, args)


if __name__ == "__main__":
    main()
