"""
What a group that shares one prefill saves when rollouts are drawn, against every rollout reading its prompt and its
picture for itself, as TRL draws them, in alternation in one run.

    python -m benchmarks.rollouts [--prompts 4] [--generations 8] [--tokens 24] [--repeats 5] [--output rollouts.json]

Both sides are given the same processed prompts and the same random numbers, and have to draw the same tokens and give
them the same log-probabilities to 1e-4. Prints a table; writes JSON with `--output`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.facts import write_facts
from benchmarks.random_pairs import Kind, loaded, random_pairs
from mmemb_r1 import MMEmbR1Model
from mmemb_r1.content import given_parts
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.rationale_tokens import append_tokens
from mmemb_r1.training.adaptive.forward import PolicyForward
from mmemb_r1.training.adaptive.rollouts import RolloutGroup, roll_out

KINDS = {"text": Kind(0, 12, 1), "small picture": Kind(64, 8, 1), "large picture": Kind(320, 8, 1)}
TOLERANCE = 1e-4


def repeated(batch: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Each prompt so many times side by side, with its picture: every row has one picture, or none."""
    rows = len(batch["input_ids"])
    return {
        key: value.unflatten(0, (rows, -1)).repeat_interleave(number, dim=0).flatten(0, 1)
        for key, value in batch.items()
    }


def log_probs(model: MMEmbR1Model, batch: dict[str, Tensor], group: RolloutGroup, pad: int) -> Tensor:
    """Of what was drawn, one token after another."""
    inputs = append_tokens(batch, group.rationales, pad)
    starts = batch["attention_mask"].sum(dim=1)
    places = torch.arange(inputs["input_ids"].shape[1])
    outside = (places < starts[:, None]) | ~inputs["attention_mask"].bool()
    with torch.no_grad():
        found = PolicyForward(model, model.config, 1.0)(
            labels=inputs["input_ids"].masked_fill(outside, -100), **inputs
        )
    return found.log_probs


def measure(model: MMEmbR1Model, processor: Any, kind: Kind, args: argparse.Namespace) -> dict[str, Any]:
    """Times of both sides in alternation, and their ratio within each round."""
    queries = [given_parts(query) for query in random_pairs(kind, args.prompts, args.seed)["query"]]
    batch = dict(render(processor, to_conversations(queries)))
    many = repeated(batch, args.generations)

    def draw(name: str) -> RolloutGroup:
        given, number = (batch, args.generations) if name == "shared" else (many, 1)
        generator = torch.Generator().manual_seed(args.seed)
        return roll_out(model, given, number, max_tokens=args.tokens, generator=generator)

    groups = {name: draw(name) for name in ("stock", "shared")}
    if groups["stock"].rationales != groups["shared"].rationales:
        raise ValueError("Both sides were given the same random numbers and drew other tokens.")
    stock, shared = (log_probs(model, many, group, processor.tokenizer.pad_token_id) for group in groups.values())
    vectors = float((groups["stock"].reasoned - groups["shared"].reasoned).abs().max())
    apart = max(float((stock - shared).abs().max()), vectors)
    if apart > TOLERANCE:
        raise ValueError(f"Log-probabilities or vectors differ by {apart:.1e}; allowed: {TOLERANCE}.")
    times: dict[str, list[float]] = {name: [] for name in groups}
    for repeat in range(args.repeats):
        for name in list(groups)[:: 1 if repeat % 2 else -1]:
            start = time.perf_counter()
            draw(name)
            times[name].append(time.perf_counter() - start)
    ratios = [slow / fast for slow, fast in zip(times["stock"], times["shared"], strict=True)]
    return {
        "prompt_tokens": int(batch["attention_mask"].sum()) // args.prompts,
        "drawn_tokens": int(groups["shared"].num_tokens.sum()),
        **{f"{name}_seconds": statistics.median(values) for name, values in times.items()},
        "ratio": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "apart": apart,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint; default: an untrained one of the quickstart's size")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--generations", type=int, default=8, help="rollouts of each prompt")
    parser.add_argument("--tokens", type=int, default=24, help="budget of a rationale")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    model, processor = loaded(args.model, args.seed, **({} if args.model else {"image_size": 320}))
    model.eval()
    results = {name: measure(model, processor, kind, args) for name, kind in KINDS.items()}
    print(f"{args.prompts} prompts, {args.generations} rollouts of each, {args.tokens} tokens at most")
    heads = " ".join(f"{head:>8s}" for head in ("prompt", "drawn", "stock", "shared", "ratio", "lowest", "apart"))
    print(f"{'':14s} {heads}")
    for name, row in results.items():
        print(
            f"{name:14s} {row['prompt_tokens']:8d} {row['drawn_tokens']:8d} {row['stock_seconds']:6.2f} s "
            f"{row['shared_seconds']:6.2f} s {row['ratio']:7.2f}x {row['lowest_ratio']:7.2f}x {row['apart']:8.0e}"
        )
    if args.output is not None:
        write_facts(args.output, results, args, kinds={name: kind._asdict() for name, kind in KINDS.items()})


if __name__ == "__main__":
    main()
