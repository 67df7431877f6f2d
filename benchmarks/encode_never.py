"""
What adaptivity costs an input that does not think: `encode(reasoning="never")` against a plain sentence-transformers
Transformer + Pooling over the same backbone, the same prompts and the same inputs, in alternation in one run.

    python -m benchmarks.encode_never [--model runs/quickstart/model | --random-100m] [--inputs 256] [--repeats 7]
        [--output encode_never.json]

Prints a table of both throughputs and their ratio, for text, pictures, and both in one input; writes JSON with
`--output`. The vectors are compared as well: both read the last token's state, so they have to be the same.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from benchmarks.engine.report import save, show, verdict
from benchmarks.engine.subject import Subject, add_arguments
from benchmarks.engine.timing import alternating, ratio
from benchmarks.engine.workload import random_inputs
from mmemb_r1 import MMEmbR1

KINDS = ("text", "picture", "mixed")
TOLERANCE = 1e-4
LEAST = 0.97  # of the plain model's throughput


def plain_model(adaptive: MMEmbR1, subject: Subject, folder: Path) -> SentenceTransformer:
    """The backbone of an adaptive model as sentence-transformers would use it; prompts end in `<|embed|>` all the
    same."""
    adaptive[0].model.vlm.save_pretrained(folder)
    adaptive.processor.save_pretrained(folder)
    attention = {} if subject.attention is None else {"attn_implementation": subject.attention}
    transformer = Transformer(
        str(folder),
        processing_kwargs={"chat_template": {"add_generation_prompt": True}},
        model_kwargs={"dtype": subject.dtype, **attention},
    )
    transformer.tokenizer.padding_side = "left"
    pooling = Pooling(adaptive.get_embedding_dimension(), pooling_mode="lasttoken")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device=subject.device)


def run(subject: Subject, *, inputs: int = 256, batch_size: int = 32, repeats: int = 7) -> dict[str, Any]:
    """
    Measure both sides.

    Args:
        subject: the model.
        inputs: how many are embedded.
        batch_size: rows of a batch.
        repeats: rounds.

    Raises:
        ValueError: if vectors differ, in float32.
    """
    adaptive = subject.load()
    with tempfile.TemporaryDirectory() as folder:
        plain = plain_model(adaptive, subject, Path(folder))
    kinds = {}
    for kind in KINDS:
        values = random_inputs(kind, inputs, subject)
        options = {"batch_size": batch_size, "show_progress_bar": False}
        calls = {
            "plain": lambda values=values, options=options: plain.encode(values, **options),
            "never": lambda values=values, options=options: adaptive.encode(values, reasoning="never", **options),
        }
        difference = float(np.abs(calls["plain"]() - calls["never"]()).max())  # and a warm-up
        if subject.dtype == "float32" and difference > TOLERANCE:
            raise ValueError(f"Vectors of the two sides differ by {difference:.1e}; allowed: {TOLERANCE}.")
        times = alternating(calls, repeats, subject)
        kinds[kind] = {
            **{f"{name}_seconds": statistics.median(values) for name, values in times.items()},
            "throughput": ratio(times["plain"], times["never"]),
            "apart": difference,
        }
    return {"subject": subject.name, "inputs": inputs, "batch_size": batch_size, "kinds": kinds}


def show_results(results: dict[str, Any]) -> None:
    rows = [
        {
            "": kind,
            "plain": f"{results['inputs'] / found['plain_seconds']:.0f} /s",
            "never": f"{results['inputs'] / found['never_seconds']:.0f} /s",
            "ratio": f"{found['throughput']['median']:.3f}",
            "least": f"{found['throughput']['least']:.3f}",
            "apart": f"{found['apart']:.0e}",
        }
        for kind, found in results["kinds"].items()
    ]
    worst = min(found["throughput"]["median"] for found in results["kinds"].values())
    title = f"Direct embeddings against plain sentence-transformers: {results['subject']}"
    show(title, rows, verdict("least share of the plain throughput", worst, ">= 0.97", worst >= LEAST))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--inputs", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    results = run(Subject.of(args), inputs=args.inputs, batch_size=args.batch_size, repeats=args.repeats)
    show_results(results)
    save(results, args)


if __name__ == "__main__":
    main()
