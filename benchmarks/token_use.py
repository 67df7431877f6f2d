"""
What share of the tokens that a step of the joint phase runs is no padding, by how its inputs are put into forward
passes: pairs of the kinds of MMEB (classification, questions, retrieval both ways, grounding, documents), with
pictures as large as they are there and rationales on most queries.

    python -m benchmarks.token_use [--pairs 256] [--batches 4] [--output token_use.json]

Pictures have as many tokens as Qwen3-VL gives to their size (one per 32 x 32 pixels). Nothing is run but the collator:
lengths are what counts. "as drawn" is what batches would hold without any order. Prints a table; writes JSON with
`--output`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.facts import write_facts
from benchmarks.random_pairs import words
from mmemb_r1 import MMEmbR1Model
from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training.joint.collator import JointCollator
from mmemb_r1.training.joint.sampler import TaskBatchSampler

PIXELS_PER_TOKEN = 32  # along one edge, of Qwen3-VL
SUB_BATCH = 64
AT_ONCE = 16
WORDS, VOCABULARY = 100, 2000  # few enough words for a tokenizer of random ones to know each
Side = tuple[str | None, tuple[int, int]]  # the picture's kind, and words of text, from and to


class Kind(NamedTuple):
    """Describe a kind of task."""

    share: float  # of all pairs
    query: Side
    target: Side
    rationale: float  # share of queries with one


PICTURES = {"photo": (640, 480), "thumbnail": (336, 336), "page": (1000, 1300), "crop": (200, 200)}
KINDS = {
    "classification": Kind(0.15, ("thumbnail", (10, 16)), (None, (1, 4)), 0.6),
    "questions": Kind(0.25, ("photo", (12, 30)), (None, (1, 6)), 0.8),
    "documents": Kind(0.15, ("page", (14, 30)), (None, (1, 8)), 0.8),
    "text to picture": Kind(0.2, (None, (14, 40)), ("photo", (4, 8)), 0.6),
    "picture to text": Kind(0.15, ("photo", (8, 14)), (None, (10, 40)), 0.6),
    "grounding": Kind(0.1, ("photo", (12, 24)), ("crop", (4, 8)), 0.6),
}
RATIONALE_WORDS = (40, 160)
# Name -> options of the collator: what recipes had, and what they have.
PARTED: dict[str, dict[str, Any]] = {
    "two forward passes a side": {"num_chunks": 2},
    "16 inputs at once": {"chunk_size": 16},
    "8 inputs at once": {"chunk_size": 8},
    "32,768 tokens at once": {"chunk_tokens": 32768},
    "16,384 tokens at once": {"chunk_tokens": 16384},
    "8,192 tokens at once": {"chunk_tokens": 8192},
}


def examples(count: int, unit: float, seed: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Make pairs of all kinds, and say which each is; `unit` is what their pictures' edges are multiplied by."""
    rng, known = np.random.default_rng(seed), np.array(words(seed)[:WORDS])
    shares = np.array([kind.share for kind in KINDS.values()])
    names = rng.choice(list(KINDS), size=count, p=shares / shares.sum())

    def text(least: int, most: int) -> str:
        return " ".join(rng.choice(known, size=rng.integers(least, most + 1)))

    def value(side: Side) -> dict[str, Any]:
        picture, length = side
        if picture is None:
            return {"text": text(*length)}
        edges = [max(8, round(edge * unit * rng.uniform(0.75, 1.25))) for edge in PICTURES[picture]]
        color = tuple(int(shade) for shade in rng.integers(0, 256, 3))
        return {"text": text(*length), "image": [Image.new("RGB", (edges[0], edges[1]), color)]}

    def one(row: int, kind: Kind) -> dict[str, Any]:
        thinks = rng.random() < kind.rationale
        example = {"pair_id": str(row), "query": value(kind.query), "target": value(kind.target), "negatives": []}
        example |= {"query_rationale": [text(*RATIONALE_WORDS)] if thinks else [], "target_rationale": []}
        return example | {"query_weight": 1.0, "target_weight": 1.0, "seed": row}

    return [one(row, KINDS[name]) for row, name in enumerate(names)], names.tolist()


class Lengths(NamedTuple):
    """Hold what the inputs of a side of a batch have: tokens, and tokens as the collator counts them before."""

    rendered: list[int]
    counted: list[float]
    rows: int  # pairs


def lengths_of(collator: JointCollator, batch: list[dict[str, Any]]) -> list[Lengths]:
    """Render every input of both sides of a batch by itself."""
    found = []
    for name, side in collator(batch).items():
        rendered = [int(chunk["features"]["attention_mask"].sum()) for chunk in side["chunks"]]
        rendered = [rendered[place] for place in side["order"].tolist()]
        first = {number: row for row, number in reversed(list(enumerate(side["index"].tolist())))}
        inputs = [batch[first[number]] for number in range(len(rendered))]
        values = [
            {"value": one[name], "rationale": collator.rationale_ids(one[f"{name}_rationale"])} for one in inputs
        ]
        found.append(Lengths(rendered, collator.lengths(values), len(batch)))
    return found


def figures(name: str, sides: list[Lengths], parted: list[list[list[int]]], batches: int) -> dict[str, Any]:
    """Add up what the forward passes of all batches run."""
    chunks = [
        [side.rendered[place] for place in part] for side, parts in zip(sides, parted, strict=True) for part in parts
    ]
    useful, run = sum(map(sum, chunks)), [max(chunk) * len(chunk) for chunk in chunks]
    return {
        "parted": name,
        "useful_share": useful / sum(run),
        "tokens": useful,
        "tokens_run": sum(run),
        "passes": len(run) / batches,
        "largest_pass_tokens": max(run),
    }


def measured(pairs: int, batches: int, seed: int) -> list[dict[str, Any]]:
    """Part the same batches in each way."""
    texts = [" ".join(words(seed)[:WORDS])]
    model, processor = MMEmbR1Model.from_vlm(*build_tiny_vlm("qwen3_vl", texts=texts, vocab_size=VOCABULARY))
    pictures = processor.image_processor
    pictures.size = {"shortest_edge": 256, "longest_edge": 2**24}
    unit = pictures.patch_size * pictures.merge_size / PIXELS_PER_TOKEN
    table, tasks = examples(pairs * batches, unit, seed)
    whole = JointCollator(processor, model.config, max_rationale_tokens=1024, chunk_size=1)
    drawn = TaskBatchSampler(tasks, pairs, min(SUB_BATCH, pairs), seed=seed)
    sides = [side for batch in drawn for side in lengths_of(whole, [table[visit.row] for visit in batch])]
    as_drawn = [
        [
            list(range(start, min(start + AT_ONCE, len(side.rendered))))
            for start in range(0, len(side.rendered), AT_ONCE)
        ]
        for side in sides
    ]
    rows = [figures(f"{AT_ONCE} inputs at once, as drawn", sides, as_drawn, len(drawn))]
    for name, options in PARTED.items():
        collator = replace(whole, **{"chunk_size": None, **options})
        parted = [collator.parts(side.counted, side.rows) for side in sides]
        rows.append(figures(name, sides, parted, len(drawn)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=256, help="of a batch")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = measured(args.pairs, args.batches, args.seed)
    print(f"{args.batches} batches of {args.pairs} pairs, {rows[0]['tokens']:,} tokens")
    print(f"{'':30s} {'useful share':>12s} {'tokens run':>11s} {'passes a batch':>15s} {'largest pass':>13s}")
    for row in rows:
        print(
            f"{row['parted']:30s} {row['useful_share']:12.3f} {row['tokens_run']:11,d} {row['passes']:15.1f} "
            f"{row['largest_pass_tokens']:13,d}"
        )
    if args.output is not None:
        write_facts(args.output, rows, args)


if __name__ == "__main__":
    main()
