"""
What vLLM saves, or costs, when the rationales of rollouts are drawn, against the policy's own decoder: in alternation
in one run, in the environment of `make test-vllm`.

    VLLM_CPU_KVCACHE_SPACE=1 python -m benchmarks.vllm_rollouts [--prompts 8] [--generations 8] [--tokens 24]
        [--repeats 5] [--output vllm_rollouts.json]

Both sides draw as many rollouts of the same prompts from the same weights. That they would write the same is what
tests/vllm/test_grpo.py shows; here the log-probabilities that vLLM gives what it drew are compared with the trainer's.
Also prints what it takes to hand over the weights. Writes JSON with `--output`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.facts import write_facts
from benchmarks.random_pairs import loaded, random_pairs
from benchmarks.rollouts import KINDS, log_probs, repeated
from mmemb_r1.content import given_parts
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.training.adaptive.config import AdaptiveGRPOConfig
from mmemb_r1.training.adaptive.rollouts import RolloutGroup, roll_out
from mmemb_r1.training.adaptive.vllm_rationales import VllmRationales

SIZES = {"hidden_size": 256, "num_heads": 4, "image_size": 320}  # heads of 64: vLLM on a CPU takes no smaller ones
TOLERANCE = 1e-3


def engine_of(model: Any, processor: Any, args: argparse.Namespace) -> VllmRationales:
    """Start vLLM as the trainer does."""
    config = AdaptiveGRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="mmemb-r1-"),
        per_device_train_batch_size=args.prompts * args.generations,
        num_generations=args.generations,
        max_input_tokens=1024,
        use_vllm=True,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    return VllmRationales(model, processor, config, torch.device("cpu"))


def measure(model: Any, processor: Any, engine: VllmRationales, kind: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Times of both sides in alternation, and their ratio within each round."""
    queries = [given_parts(query) for query in random_pairs(kind, args.prompts, args.seed)["query"]]
    chats = to_conversations(queries)
    batch = dict(render(processor, chats))
    ids = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]

    def draw(name: str, repeat: int = 0) -> RolloutGroup:
        writer = None
        if name == "vllm":  # it reads the prompts anew, as with new weights
            engine.forget()
            writer = engine.of(chats, ids)
        generator = torch.Generator().manual_seed(args.seed + repeat)
        return roll_out(model, batch, args.generations, max_tokens=args.tokens, generator=generator, writer=writer)

    apart = largest_difference(model, processor, batch, draw("vllm"), args)
    draw("local")
    times: dict[str, list[float]] = {"local": [], "vllm": []}
    tokens: dict[str, int] = dict.fromkeys(times, 0)
    for repeat in range(args.repeats):
        for name in list(times)[:: 1 if repeat % 2 else -1]:
            start = time.perf_counter()
            group = draw(name, repeat)
            times[name].append(time.perf_counter() - start)
            tokens[name] += int(group.num_tokens.sum())
    ratios = [slow / fast for slow, fast in zip(times["local"], times["vllm"], strict=True)]
    return {
        "prompt_tokens": int(batch["attention_mask"].sum()) // args.prompts,
        **{f"{name}_tokens": count // args.repeats for name, count in tokens.items()},
        **{f"{name}_seconds": statistics.median(values) for name, values in times.items()},
        "ratio": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "apart": apart,
    }


def largest_difference(
    model: Any, processor: Any, batch: dict[str, Any], group: RolloutGroup, args: argparse.Namespace
) -> float:
    """Of log-probabilities of what vLLM drew: those that it gives, and those that the trainer will take."""
    many = repeated(batch, args.generations)
    taken = log_probs(model, many, group, processor.tokenizer.pad_token_id)
    apart = 0.0
    for row, (own, start) in enumerate(
        zip(group.logps or [], many["attention_mask"].sum(dim=1).tolist(), strict=True)
    ):
        given = torch.tensor(own[:-1])  # the end of the completion is a decision of the gate
        chosen = given != 0
        apart = max(apart, float((given - taken[row, start : start + len(given)])[chosen].abs().max()))
    if apart > TOLERANCE:
        raise ValueError(f"Log-probabilities differ by {apart:.1e}; allowed: {TOLERANCE}.")
    return apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--generations", type=int, default=8, help="rollouts of each prompt")
    parser.add_argument("--tokens", type=int, default=24, help="budget of a rationale")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    model, processor = loaded(None, args.seed, **SIZES)
    model.eval()
    engine = engine_of(model, processor, args)
    handed = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        engine.sync_weights()
        handed.append(time.perf_counter() - start)
    results = {name: measure(model, processor, engine, kind, args) for name, kind in KINDS.items()}
    engine.close()
    size = sum(parameter.numel() for parameter in model.vlm.parameters()) / 1e6
    print(f"{args.prompts} prompts, {args.generations} rollouts of each, {args.tokens} tokens at most")
    print(f"{size:.1f} M weights handed over in {statistics.median(handed):.2f} s")
    heads = " ".join(f"{head:>8s}" for head in ("prompt", "drawn", "local", "vLLM", "ratio", "lowest", "apart"))
    print(f"{'':14s} {heads}")
    for name, row in results.items():
        print(
            f"{name:14s} {row['prompt_tokens']:8d} {row['vllm_tokens']:8d} {row['local_seconds']:6.2f} s "
            f"{row['vllm_seconds']:6.2f} s {row['ratio']:7.2f}x {row['lowest_ratio']:7.2f}x {row['apart']:8.0e}"
        )
    if args.output is not None:
        kinds = {name: kind._asdict() for name, kind in KINDS.items()}
        write_facts(args.output, results, args, kinds=kinds, handed_over_seconds=statistics.median(handed))


if __name__ == "__main__":
    main()
