"""An index in memory, with the interface of `mmemb_r1.index.Index`, which needs no LanceDB."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from mmemb_r1.index.results import Hit, SearchResult

COLOURS = ("red", "green", "blue", "orange", "purple", "grey")


class IndexInMemory:
    def __init__(self, model, refused=()):
        self.model, self.refused, self.searches = model, refused, []
        pictures = [Image.new("RGB", (32, 32), colour) for colour in COLOURS]
        self.vectors = model.encode_document(pictures)
        self.thumbnails = []
        for picture in pictures:
            picture.save(stream := BytesIO(), "JPEG")
            self.thumbnails.append(stream.getvalue())

    def __len__(self):
        return len(COLOURS)

    def search(self, query, k=10, *, reasoning=None):
        self.searches.append(reasoning)
        if reasoning in self.refused:
            raise ValueError(f"vectors of reasoning={reasoning} are of another space")
        explained = self.model.explain(query, task="query", reasoning=reasoning)
        scores = self.vectors @ explained.pop("embedding")
        hits = [
            Hit(COLOURS[place], float(scores[place]), None, "image", None, "", {}, self.thumbnails[place])
            for place in np.argsort(-scores, kind="stable")[:k]
        ]
        del explained["num_reasoning_rounds"]
        return SearchResult(hits, **explained, seconds=0.1)


@pytest.fixture(scope="session")
def demo_model(thinking):
    return thinking(max_reasoning_tokens=6, max_reasoning_rounds=2)


@pytest.fixture
def index(demo_model):
    return IndexInMemory(demo_model)
