"""
Whether an input costs the same however many there are: throughput of `encode` at growing numbers of inputs, never and
auto, in alternation in one run; and the memory of `encode_stream`, which has to stay flat.

    python -m benchmarks.linear_cost [--model runs/quickstart/model] [--sizes 1000 4000 16000] [--repeats 3]
        [--output linear_cost.json]

Memory is that of a process of its own (Linux), model included, or of the CUDA device: the peak of each shard of the
largest stream. A single peak would tell of the worst moment, which a longer stream meets more often. The early shards
are compared with the late ones, by their medians. Inputs of the stream are made one by one, and nothing but the stream
keeps them. Prints a table; writes JSON with `--output`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import torch

from benchmarks.engine.memory import MIB, Peaks, apart
from benchmarks.engine.report import save, show, verdict
from benchmarks.engine.subject import Subject, add_arguments
from benchmarks.engine.timing import alternating
from benchmarks.engine.workload import inputs_of, numbered
from mmemb_r1.stream import encode_stream

MODES = ("never", "auto")
SIZES = (1000, 4000, 16_000)
SHARDS = 32  # of the largest stream
SETTLING = 4  # of them are not counted: what is taken once has to be there, and the allocator settles
DIFFERENT = 500  # inputs of which a stream is made
SPREAD = 0.1  # of throughput, wanted at most


def shard_peaks(subject: Subject, size: int, shard_size: int, options: dict[str, Any]) -> list[int]:
    """Bytes that this process, or the device, holds at most while each shard of so many inputs is embedded."""
    model, values = subject.load(), inputs_of(subject, DIFFERENT)
    peaks = Peaks(subject.device)

    def inputs() -> Iterator[dict[str, Any]]:
        for number, value in enumerate(numbered(values, size)):
            if number and number % shard_size == 0:  # the stream asks for the next shard: the last one is written
                peaks.note()
            yield value
        peaks.note()

    with tempfile.TemporaryDirectory() as folder:
        encode_stream(model, inputs(), folder, shard_size=shard_size, show_progress_bar=False, **options)
    return peaks.noted


def growth(peaks: Sequence[int], shard_size: int) -> float:
    """Bytes for each further input: the median peak of the last third of the shards against that of the first."""
    settled = peaks[SETTLING:]
    third = len(settled) // 3
    between = (len(settled) - third) * shard_size  # from the middle of the one to the middle of the other
    return (statistics.median(settled[-third:]) - statistics.median(settled[:third])) / between


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
    Measure throughput at all sizes, and memory at the largest.

    Args:
        subject: the model.
        sizes: numbers of inputs, growing.
        batch_size: rows of a prefill.
        max_reasoning_tokens: budget of a rationale.
        repeats: rounds.
        memory: whether memory of a stream is measured, too.
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
        shard_size = max(batch_size, max(sizes) // SHARDS)
        peaks = apart(shard_peaks, subject, max(sizes), shard_size, {**options, "reasoning": "auto"})
        results["stream"] = {
            "shard_size": shard_size,
            "peak_bytes": peaks,
            "bytes_per_input": growth(peaks, shard_size),
            "vector_bytes": vector_bytes,
        }
    return results


def show_results(results: dict[str, Any]) -> None:
    stream = results.get("stream")
    rows = [
        {
            "inputs": str(size),
            **{mode: f"{found['inputs_per_second'][size]:.0f} /s" for mode, found in results["modes"].items()},
            **{f"{mode} ratio": f"{found['against_largest'][size]:.2f}" for mode, found in results["modes"].items()},
        }
        for size in results["sizes"]
    ]
    notes = [
        verdict(f"{mode}: throughput off the largest's by", found["spread"], "<= 0.1", found["spread"] <= SPREAD)
        for mode, found in results["modes"].items()
    ]
    if stream:
        grown, limit, peaks = stream["bytes_per_input"], stream["vector_bytes"], stream["peak_bytes"]
        settled = [f"{peak / MIB:.0f}" for peak in (peaks[SETTLING], statistics.median(peaks[SETTLING:]), peaks[-1])]
        notes.append(
            f"peaks of a stream's shards, MiB: {settled[0]} (early), {settled[1]} (median), {settled[2]} (last)"
        )
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
