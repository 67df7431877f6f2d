"""
What reading a prompt once saves, against reading it anew for each of its K continuations, in alternation in one run:

1. *sampling* K rationales of each input, as the transformers worker does, against the same sampler on every prompt
   (picture included) repeated K times;
2. *scoring* K rationales and none about each input, as an evaluator does, against a forward pass over prompt and
   rationale for each of them.

    python -m benchmarks.shared_prefix [--samples 8] [--repeats 3] [--output shared_prefix.json]

Both sides have to give the same tokens, and the same logits to 1e-4. Prints a table; writes JSON with `--output`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.facts import write_facts
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training.rationales.sampling import draw_continuations
from mmemb_r1.training.shared_prefix import branch, read_prefix, suffix_logits

SIZES = {
    "hidden_size": 256, "num_layers": 4, "num_heads": 8, "vision_hidden_size": 128, "vision_layers": 4,
    "image_size": 448, "patch_size": 16,
}  # fmt: skip
SAMPLING = {"temperature": 0.9, "top_p": 0.95}
TOLERANCE = 1e-4


def prompts(processor: Any, count: int, seed: int) -> dict[str, Any]:
    """A batch of prompts with a picture (196 tokens) and a text each, of different length."""
    rng = np.random.default_rng(seed)
    shape = (SIZES["image_size"], SIZES["image_size"], 3)
    inputs = [
        {
            "image": Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)),
            "text": "What is this?" + " Which of the two is larger?" * (row % 3),
        }
        for row in range(count)
    ]
    return dict(render(processor, to_conversations(inputs)))


def rationales(count: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Random tokens, 24 to 32 of them."""
    rng = np.random.default_rng(seed)
    return [rng.integers(20, vocab_size, size=rng.integers(24, 33)).tolist() for _ in range(count)]


def repeated(batch: dict[str, Any], count: int) -> dict[str, Any]:
    """Every row of a batch `count` times, side by side, with its picture."""
    patches = batch["image_grid_thw"].prod(dim=1).tolist()
    pixels = [part for part in batch["pixel_values"].split(patches) for _ in range(count)]
    return {
        key: torch.cat(pixels) if key == "pixel_values" else value.repeat_interleave(count, dim=0)
        for key, value in batch.items()
    }


def appended(batch: dict[str, Any], suffixes: list[list[int]]) -> dict[str, Any]:
    """A batch with a suffix after each prompt, padded on the left without gaps."""
    keep = batch["attention_mask"].bool()
    tails = {"input_ids": suffixes, "attention_mask": [[1] * len(suffix) for suffix in suffixes]}
    other = [[0] * len(suffix) for suffix in suffixes]
    result = dict(batch)
    for key, value in batch.items():
        if value.shape == keep.shape:
            rows = [
                torch.cat([row[real], row.new_tensor(tail)])
                for row, real, tail in zip(value, keep, tails.get(key, other), strict=True)
            ]
            result[key] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
    return result


def sampling_sides(vlm: Any, batch: dict[str, Any], args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    seeds = list(range(args.inputs * args.samples))
    rows = torch.arange(args.inputs).repeat_interleave(args.samples)

    def draw(prefix: Any) -> list[list[int]]:
        # no token ends a rationale: all are of one length
        drawn = draw_continuations(vlm, prefix, seeds, end_ids=(), max_tokens=args.tokens, **SAMPLING)
        return [one.token_ids for one in drawn]

    return {
        "repeated": lambda: draw(read_prefix(vlm, repeated(batch, args.samples))),
        "shared": lambda: draw(branch(read_prefix(vlm, batch), rows)),
    }


def scoring_sides(vlm: Any, batch: dict[str, Any], args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    size, question = vlm.config.text_config.vocab_size, [30, 31, 32]
    drawn = rationales(args.inputs * args.samples, size, args.seed)
    suffixes = [
        suffix
        for row in range(args.inputs)
        for suffix in (
            question,  # without a rationale
            *(rationale + question for rationale in drawn[row * args.samples : (row + 1) * args.samples]),
        )
    ]
    rows = [row for row in range(args.inputs) for _ in range(args.samples + 1)]
    return {
        "repeated": lambda: read_prefix(vlm, appended(repeated(batch, args.samples + 1), suffixes)).logits,
        "shared": lambda: suffix_logits(vlm, read_prefix(vlm, batch), rows, suffixes),
    }


def same(one: Any, other: Any) -> str:
    """Describe how far the results of both sides agree; a ValueError if they do not."""
    if isinstance(one, list):
        if one != other:
            raise ValueError("The two sides drew different tokens.")
        return f"{sum(map(len, one))} tokens are the same"
    difference = float((one - other).abs().max())
    if difference > TOLERANCE:
        raise ValueError(f"The logits of the two sides differ by {difference:.1e}.")
    return f"logits differ by {difference:.1e}"


def measure(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """Median times of both sides, in alternation."""
    agreement = same(sides["repeated"](), sides["shared"]())  # and a warm-up
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in sorted(sides, reverse=bool(repeat % 2)):
            start = time.perf_counter()
            sides[name]()
            times[name].append(time.perf_counter() - start)
    pairs = [slow / fast for slow, fast in zip(times["repeated"], times["shared"], strict=True)]
    return {
        **{f"{name}_seconds": statistics.median(values) for name, values in times.items()},
        "ratio": statistics.median(pairs),
        "lowest_ratio": min(pairs),
        "agreement": agreement,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8, help="rationales per input")
    parser.add_argument("--tokens", type=int, default=28, help="tokens of a drawn rationale")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    vlm, processor = build_tiny_vlm("qwen3_vl", seed=args.seed, **SIZES)
    batch = prompts(processor, args.inputs, args.seed)
    results = {
        name: measure(sides(vlm, batch, args), args.repeats)
        for name, sides in (("sampling", sampling_sides), ("scoring", scoring_sides))
    }
    prompt_tokens = batch["attention_mask"].sum(dim=1).tolist()
    print(f"{args.inputs} prompts of {min(prompt_tokens)}-{max(prompt_tokens)} tokens, K = {args.samples}")
    print(f"{'':10s} {'repeated':>10s} {'shared':>10s} {'ratio':>7s} {'lowest':>7s}")
    for name, row in results.items():
        print(
            f"{name:10s} {row['repeated_seconds']:8.2f} s {row['shared_seconds']:8.2f} s {row['ratio']:6.2f}x "
            f"{row['lowest_ratio']:6.2f}x  {row['agreement']}"
        )
    if args.output is not None:
        write_facts(args.output, results, args, sizes=SIZES, prompt_tokens=prompt_tokens)


if __name__ == "__main__":
    main()
