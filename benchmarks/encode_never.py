"""
What adaptivity costs an input that does not think: `encode(reasoning="never")` against a plain sentence-transformers
Transformer + Pooling over the same backbone, the same prompts and the same inputs, in alternation in one run.

    python benchmarks/encode_never.py [--rows 256] [--repeats 7]

Prints the ratio of the medians for text, pictures, and a mix. The vectors are compared as well: both read the last
token's state, so they have to be the same.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from mmemb_r1 import MMEmbR1
from mmemb_r1.quickstart.recipe import Recipe
from mmemb_r1.tiny import build_tiny_vlm

SIZES: dict[str, dict] = {"tiny": {}, "quickstart": Recipe().backbone}


def plain_model(adaptive: MMEmbR1, folder: Path) -> SentenceTransformer:
    """The backbone of an adaptive model as sentence-transformers would use it; prompts end in `<|embed|>` all the
    same."""
    adaptive[0].model.vlm.save_pretrained(folder)
    adaptive.processor.save_pretrained(folder)
    transformer = Transformer(
        str(folder),
        processing_kwargs={"chat_template": {"add_generation_prompt": True}},
        model_kwargs={"dtype": "float32"},
    )
    transformer.tokenizer.padding_side = "left"
    pooling = Pooling(adaptive.get_embedding_dimension(), pooling_mode="lasttoken")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")


def inputs(kind: str, rows: int) -> list:
    rng = np.random.default_rng(0)
    words = ["capital", "of", "this", "country", "flag", "red", "largest", "neighbour", "digits", "sum"]
    texts = [" ".join(rng.choice(words, size=rng.integers(4, 24))) for _ in range(rows)]
    pictures = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(rows)]
    if kind == "text":
        return texts
    if kind == "picture":
        return pictures
    return [
        text if row % 2 else {"image": picture, "text": text}
        for row, (text, picture) in enumerate(zip(texts, pictures, strict=True))
    ]


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="quickstart")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    adaptive = MMEmbR1.from_vlm(*build_tiny_vlm("qwen3_vl", **SIZES[args.size]))
    with tempfile.TemporaryDirectory() as folder:
        plain = plain_model(adaptive, Path(folder))
    for kind in ("text", "picture", "mixed"):
        rows = inputs(kind, args.rows)
        calls = {
            "plain": lambda rows=rows: plain.encode(rows, batch_size=args.batch_size),
            "never": lambda rows=rows: adaptive.encode(rows, reasoning="never", batch_size=args.batch_size),
        }
        difference = np.abs(calls["plain"]() - calls["never"]()).max()  # and a warm-up
        times: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(args.repeats):
            for name in sorted(calls, reverse=bool(repeat % 2)):
                times[name].append(seconds(calls[name]))
        plain_time, never_time = statistics.median(times["plain"]), statistics.median(times["never"])
        pairwise = statistics.median(b / a for a, b in zip(times["plain"], times["never"], strict=True))
        print(
            f"{kind:8s} plain {plain_time:.3f} s  never {never_time:.3f} s  ratio {never_time / plain_time:.3f}  "
            f"(median of pairs {pairwise:.3f})  max |difference| {difference:.1e}"
        )


if __name__ == "__main__":
    main()
