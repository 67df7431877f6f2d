"""
All benchmarks of the inference engine in one go, on a CUDA device unless another one is named.

    python -m benchmarks.gpu [--model runs/quickstart/model | --random-100m] [--dtype bfloat16]
        [--attn flash_attention_2] [--compile] [--output gpu.json]
    python -m benchmarks.gpu --device cpu --quick

Attention is flash attention where that is installed and the dtype allows it, else PyTorch's own, unless `--attn` names
another. `--quick` takes few inputs. Prints a table for each; writes one JSON file with `--output`, which grows with
each benchmark. Without a CUDA device it prints an error and exits with 2.
"""

from __future__ import annotations

import argparse
import sys
import time
from types import ModuleType
from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available

from benchmarks import against_peer, auto_mixture, encode_never, linear_cost
from benchmarks.engine.report import save
from benchmarks.engine.subject import Subject, add_arguments

BENCHMARKS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module for module in (encode_never, against_peer, auto_mixture, linear_cost)
}
WITH_MEMORY = ("against_peer", "linear_cost")
FULL: dict[str, dict[str, Any]] = {
    "encode_never": {"inputs": 1024, "batch_size": 128},
    "against_peer": {"inputs": 512, "batch_size": 64},
    "auto_mixture": {"inputs": 2048, "batch_size": 128},
    "linear_cost": {"batch_size": 128},
}
QUICK: dict[str, dict[str, Any]] = {
    "encode_never": {"inputs": 32, "batch_size": 16, "repeats": 3},
    "against_peer": {"inputs": 32, "batch_size": 8, "repeats": 1},
    "auto_mixture": {"inputs": 32, "batch_size": 16, "decode_batch_size": 4, "max_reasoning_tokens": 8, "repeats": 3},
    "linear_cost": {"sizes": (64, 256), "max_reasoning_tokens": 8, "repeats": 2},
}


def best_attention(dtype: str) -> str:
    """The implementation of attention that is fastest on a GPU."""
    return "flash_attention_2" if dtype != "float32" and is_flash_attn_2_available() else "sdpa"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.set_defaults(device="cuda")
    parser.add_argument("--quick", action="store_true", help="few inputs")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), help="these benchmarks")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="measure times only")
    args = parser.parse_args()
    is_cuda = torch.device(args.device).type == "cuda"
    if is_cuda and not torch.cuda.is_available():
        print("There is no CUDA device here. On a CPU: --device cpu --quick", file=sys.stderr)
        return 2
    if args.attn is None and is_cuda:
        args.attn = best_attention(args.dtype)
    subject, results = Subject.of(args), {}
    for name in args.only:
        start = time.perf_counter()
        chosen = (QUICK if args.quick else FULL)[name] | ({"memory": args.memory} if name in WITH_MEMORY else {})
        found = BENCHMARKS[name].run(subject, **chosen)
        BENCHMARKS[name].show_results(found)
        results[name] = {**found, "seconds_in_all": time.perf_counter() - start}
        save(results, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
