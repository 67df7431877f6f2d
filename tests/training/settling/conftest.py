"""A table of pairs with pictures by path, of which single ones can be made unusable in each way."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset
from PIL import Image

FAULTS = ("truncated", "missing", "too long")
LIMIT = 60  # tokens of an input; every other one has fewer
COLORS = ("red", "green", "blue", "white", "black", "gray")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    return tmp_path


@pytest.fixture
def table_with(folder):
    """`table_with(fault, row=3, side="query", number=12)`: pairs with pictures by path, one of them unusable."""

    def build(fault=None, row=3, side="query", number=12, rationale="It is a color."):
        rows = []
        for place in range(number):
            path = folder / "pictures" / f"{place}.jpg"
            Image.new("RGB", (64, 64), COLORS[place % 6]).save(path)
            pair = {
                "pair_id": f"pair {place}",
                "query": {"text": f"color {place}?", "image": [str(path)]},
                "target": {"text": f"{COLORS[place % 6]} {place}", "image": [str(path)] if side == "target" else []},
                "negatives": [{"text": f"no color {place}", "image": []}],
                "query_rationale": [rationale],
            }
            rows.append(pair)
        path = folder / "pictures" / f"{row}.jpg"
        if fault == "truncated":
            path.write_bytes(path.read_bytes()[:300])
        elif fault == "missing":
            path.unlink()
        elif fault == "too long":
            rows[row][side]["text"] = "color " * LIMIT
        elif fault == "too long rationale":
            rows[row]["query_rationale"] = ["It is red. " * LIMIT]
        return Dataset.from_list(rows)

    return build


@pytest.fixture
def lines():
    """`lines(path)`: the rows of a file of JSON lines."""
    return lambda path: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
