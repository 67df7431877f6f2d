"""
Whether an input costs the same however many there are: throughput of `encode` at growing numbers of inputs, never and
auto, in alternation in one run; and the memory of `encode_stream`, which has to stay flat.

    python benchmarks/linear_cost.py [--model runs/quickstart/model] [--sizes 1000 4000 16000] [--repeats 3]
        [--output linear_cost.json]

Memory is the peak of a process of its own for each size (Linux), model included, or of the CUDA device. Inputs
of the stream are made one by one, and nothing but the stream keeps them. Prints a table; writes JSON with `--output`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from engine.memory import MIB, apart, peak
from engine.report import save, show, verdict
from engine.subject import Subject, add_arguments
from engine.timing import alternating
from engine.workload import inputs_of, numbered

from mmemb_r1.stream import encode_stream

MODES = ("never", "auto")
SIZES = (1000, 4000, 16_000)
SHARDS = 4  # of the smaller stream at least: a shard's inputs are in memory
DIFFERENT = 500  # inputs of which a stream is made
SPREAD = 0.1  # of throughput, wanted at most


def stream_peak(subject: Subject, size: int, shard_size: int, options: dict[str, Any]) -> int:
    """
    Bytes that this process, or the device, holds at most while so many inputs are streamed. Not above what there is
    before: how much of that the allocator has given back is a matter of chance.
    """
    model, values = subject.load(), inputs_of(subject, DIFFERENT)
    with tempfile.TemporaryDirectory() as folder:

        def stream(count: int) -> None:
            inputs, output = numbered(values, count), f"{folder}/{count}"
            encode_stream(model, inputs, output, shard_size=shard_size, show_progress_bar=False, **options)

        stream(SHARDS * shard_size)  # so that what is taken once is there; the allocator settles after some shards
        return peak(lambda: stream(size), subject.device)[1]


def run(
    subject: Subject,
    *,
    sizes: Sequence[int] = SIZES,
    batch_size: int = 32,
    max_reasoning_tokens: int = 32,
    repeats: int = 3,
    memory: bool = True,
) -> dict[str, Any]:
    """
    Measure throughput at all sizes, and memory at the two largest.

    Args:
        subject: the model.
        sizes: numbers of inputs, growing.
        batch_size: rows of a prefill.
        max_reasoning_tokens: budget of a rationale.
        repeats: rounds.
        memory: whether memory is measured, too.
    """
    model, values = subject.load(), inputs_of(subject, max(sizes))
    options = {"batch_size": batch_size, "max_reasoning_tokens": max_reasoning_tokens}

    def encode(size: int, mode: str) -> Callable[[], Any]:
        return lambda: model.encode(values[:size], reasoning=mode, show_progress_bar=False, **options)

    calls = {f"{mode} {size}": encode(size, mode) for size, mode in product(sizes, MODES)}
    for mode in MODES:
        encode(min(sizes), mode)()
    times = alternating(calls, repeats, subject)
    modes = {}
    for mode in MODES:
        rates = {size: statistics.median(size / seconds for seconds in times[f"{mode} {size}"]) for size in sizes}
        # each size against the largest within a round
        against = {
            size: statistics.median(
                size / one / (max(sizes) / other)
                for one, other in zip(times[f"{mode} {size}"], times[f"{mode} {max(sizes)}"], strict=True)
            )
            for size in sizes
        }
        modes[mode] = {
            "inputs_per_second": rates,
            "against_largest": against,
            "spread": max(abs(value - 1) for value in against.values()),
        }
    results: dict[str, Any] = {"subject": subject.name, "sizes": list(sizes), "modes": modes}
    if memory:
        vector_bytes = model.get_embedding_dimension() * torch.float32.itemsize
        del model, values
        streams = list(sizes)[-2:]
        shard_size = max(batch_size, streams[0] // SHARDS)
        peaks = {
            size: apart(stream_peak, subject, size, shard_size, {**options, "reasoning": "auto"}) for size in streams
        }
        results["stream"] = {
            "shard_size": shard_size,
            "peak_bytes": peaks,
            "bytes_per_input": (peaks[streams[-1]] - peaks[streams[0]]) / (streams[-1] - streams[0]),
            "vector_bytes": vector_bytes,
        }
    return results


def show_results(results: dict[str, Any]) -> None:
    peaks = results.get("stream", {}).get("peak_bytes", {})
    rows = [
        {
            "inputs": str(size),
            **{mode: f"{found['inputs_per_second'][size]:.0f} /s" for mode, found in results["modes"].items()},
            **{f"{mode} ratio": f"{found['against_largest'][size]:.2f}" for mode, found in results["modes"].items()},
            "memory of a stream": f"{peaks[size] / MIB:.0f} MiB" if size in peaks else "-",
        }
        for size in results["sizes"]
    ]
    notes = [
        verdict(f"{mode}: throughput off the largest's by", found["spread"], "<= 0.1", found["spread"] <= SPREAD)
        for mode, found in results["modes"].items()
    ]
    if peaks:
        grown, limit = results["stream"]["bytes_per_input"], results["stream"]["vector_bytes"]
        wanted = f"< {limit}, a vector"
        notes.append(verdict("bytes that a stream takes for each further input", grown, wanted, grown < limit))
    show(f"Throughput by number of inputs: {results['subject']}", rows, *notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-reasoning-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="measure times only")
    args = parser.parse_args()
    results = run(
        Subject.of(args),
        sizes=sorted(args.sizes),
        batch_size=args.batch_size,
        max_reasoning_tokens=args.max_reasoning_tokens,
        repeats=args.repeats,
        memory=args.memory,
    )
    show_results(results)
    save(results, args)


if __name__ == "__main__":
    main()
