"""Converted embedders as plain folders of sentence-transformers."""

from __future__ import annotations

import pytest
from PIL import Image

from mmemb_r1.export import export_direct
from mmemb_r1.recipes import convert

TALL, TAN = Image.new("RGB", (64, 160), "red"), Image.new("RGB", (200, 96), "tan")


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("ume-r1", "embed-rl", "wemm")]


@pytest.mark.parametrize("recipe", ["qwen3-vl-embedding", *SLOW])
def test_vectors_are_those_of_the_converted_model(recipe, stand_in, tmp_path):
    import numpy as np
    from sentence_transformers import SentenceTransformer

    model = convert(str(stand_in(recipe))).model
    assert export_direct(model, tmp_path / "direct").largest < 1e-6
    plain = SentenceTransformer(str(tmp_path / "direct"), device="cpu")
    inputs = [
        "Lima",
        TAN,
        {"text": "What is this?", "image": TALL},
        {"image": [TALL, TAN], "text": "Which is larger?"},
    ]
    np.testing.assert_allclose(plain.encode(inputs), model.encode(inputs, reasoning="never"), atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["gme-qwen2-vl", "vlm2vec-v2"])
def test_positions_like_text_are_refused(recipe, stand_in, tmp_path):
    with pytest.raises(ValueError, match="numbers the tokens of pictures like text"):
        export_direct(convert(str(stand_in(recipe))).model, tmp_path / "direct")
