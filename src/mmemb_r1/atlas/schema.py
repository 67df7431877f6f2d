"""The columns of the tables, as `datasets.Features`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Features


def input_feature() -> dict[str, Any]:
    """Feature of one input: text or None, a list of pictures (empty for none), instruction or None."""
    from datasets import Image, List, Value

    return {"text": Value("string"), "image": List(Image()), "instruction": Value("string")}


def pair_features() -> Features:
    """`datasets.Features` of a split of pairs."""
    from datasets import Features, List, Value

    text, segments = Value("string"), List(Value("string"))
    return Features(
        {
            "pair_id": text,
            "task": text,
            "complexity": text,
            "query": input_feature(),
            "target": input_feature(),
            "negatives": List(input_feature()),
            "query_rationale": segments,
            "target_rationale": segments,
            "candidate_set": text,
            "target_id": text,
            "entity": text,
        }
    )


def candidate_features() -> Features:
    """`datasets.Features` of the candidates."""
    from datasets import Features, Value

    return Features({"candidate_set": Value("string"), "candidate_id": Value("string"), "input": input_feature()})
