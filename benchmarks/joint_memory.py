"""
What more negatives cost in memory: the peak of a step of the joint phase with gradient caching, above what the loaded
model, its gradients and the batch take, at 256 and at 4096 candidates per query.

    python -m benchmarks.joint_memory [--candidates 256 4096] [--mini-batch 64] [--output joint_memory.json]

Each size runs in a process of its own: one small step first, so that gradients and the allocator's pools are there,
then the step that is measured. Linux only: peaks are read from /proc. Prints a table; writes JSON with `--output`.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine.memory import MIB, resident
from benchmarks.facts import write_facts
from benchmarks.random_pairs import Kind, joint_trainer, loaded, one_batch, random_pairs
from mmemb_r1.training import JointConfig


def measured(candidates: int, args: argparse.Namespace) -> dict[str, Any]:
    """A step with so many candidates, in this process."""
    model, processor = loaded(args.model, args.seed)
    size = min(candidates, args.mini_batch)
    kind = Kind(0, args.words, args.rationale_words)
    fields = {"mini_batch_size": args.mini_batch, "similarity_chunk_size": args.chunk}
    small = joint_trainer(model, processor, random_pairs(kind, size, args.seed), size, args.seed, **fields)
    small.training_step(model, small.data_collator(one_batch(small)))
    pairs = random_pairs(kind, candidates, args.seed + 1)
    trainer = joint_trainer(model, processor, pairs, candidates, args.seed, **fields)
    batch = trainer.data_collator(one_batch(trainer))
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the highest is the present one again
    start = time.perf_counter()
    loss = float(trainer.training_step(model, batch))
    return {
        "candidates": candidates,
        "loaded_bytes": before,
        "peak_bytes": resident("VmHWM") - before,
        "seconds": time.perf_counter() - start,
        "loss": loss,
        "similarities_bytes": candidates**2 * torch.get_default_dtype().itemsize,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint; default: an untrained one of the quickstart's size")
    parser.add_argument("--candidates", type=int, nargs="+", default=[256, 4096])
    parser.add_argument("--mini-batch", type=int, default=32, help="inputs that run at once")
    parser.add_argument(
        "--chunk", type=int, default=JointConfig.similarity_chunk_size, help="rows of similarities at once"
    )
    parser.add_argument("--words", type=int, default=6, help="of a prompt")
    parser.add_argument("--rationale-words", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        rows = [processes.apply(measured, (candidates, args)) for candidates in args.candidates]
    print(f"a step with gradient caching, {args.mini_batch} inputs at once, similarities {args.chunk} rows at a time")
    print(f"{'candidates':>10s} {'loaded':>9s} {'peak above':>11s} {'ratio':>6s} {'one matrix':>11s} {'time':>8s}")
    for row in rows:
        print(
            f"{row['candidates']:10d} {row['loaded_bytes'] / MIB:5.0f} MiB {row['peak_bytes'] / MIB:7.0f} MiB "
            f"{row['peak_bytes'] / rows[0]['peak_bytes']:6.2f} {row['similarities_bytes'] / MIB:7.0f} MiB "
            f"{row['seconds']:6.0f} s"
        )
    if args.output is not None:
        write_facts(args.output, rows, args)


if __name__ == "__main__":
    main()
