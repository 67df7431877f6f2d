"""transformers' pipeline gives what `encode` gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import pipeline

from mmemb_r1 import MMEmbR1


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return MMEmbR1(str(tiny_checkpoint), device="cpu")


@pytest.fixture(scope="module")
def extractor(tiny_checkpoint):
    return pipeline("feature-extraction", str(tiny_checkpoint), trust_remote_code=True, device="cpu")


def test_embeddings_are_those_of_encode(extractor, model, mixed):
    for mode in ("never", "always"):
        vectors = extractor(mixed, reasoning=mode)
        np.testing.assert_allclose(vectors, model.encode(mixed, reasoning=mode), atol=1e-5)
    for value, expected in zip(mixed, model.encode(mixed), strict=True):
        np.testing.assert_allclose(extractor(value), expected, atol=1e-5)


def test_options(extractor, model):
    vector = extractor("Lima", return_tensors=True, instruction="Find it.", reasoning="always", max_reasoning_tokens=2)
    assert isinstance(vector, torch.Tensor)
    expected = model.encode("Lima", prompt="Find it.", reasoning="always", max_reasoning_tokens=2)
    np.testing.assert_allclose(vector, expected, atol=1e-5)
    with pytest.raises(TypeError, match="'resoning' is no option; allowed besides: reasoning, gate_threshold"):
        extractor("Lima", resoning="never")
    with pytest.raises(ValueError, match="reasoning='often' is not known; allowed: auto, always, never"):
        extractor("Lima", reasoning="often")
    with pytest.raises(ValueError, match="is a web address; nothing is downloaded"):
        extractor({"image": "http://192.0.2.1/a.png"})


def test_batches_are_not_for_it(extractor):
    with pytest.raises(ValueError, match=r"batch_size=2: this pipeline embeds one input at a time; .*encode"):
        extractor(["Lima", "Peru"], batch_size=2)


def test_errors_name_the_input(extractor, tiny_checkpoint):
    """Each input is a batch of its own here; plain sentence-transformers sorts them into batches by their length."""
    plain = SentenceTransformer(str(tiny_checkpoint), trust_remote_code=True, device="cpu")
    texts, wide = ["x" * length for length in range(1, 20)], Image.new("RGB", (900, 2))
    for bad in (Image.new("F", (8, 8)), "", {"image": "nowhere.png"}, wide, {"text": "a", "instruction": "x" * 10**5}):
        for call in (lambda inputs: plain.encode(inputs, batch_size=4, reasoning="never"), extractor):
            with pytest.raises(ValueError, match="^Input 19 can't be embedded: .* It was: ") as caught:
                call([*texts, bad, "y" * 30])
            assert caught.value.index == 19
            with pytest.raises(ValueError, match="^Input 0 can't be embedded: "):
                call(bad)


def test_defaults_given_when_it_is_made(tiny_checkpoint, model):
    thinker = pipeline("feature-extraction", str(tiny_checkpoint), trust_remote_code=True, reasoning="always")
    np.testing.assert_allclose(thinker("Lima"), model.encode("Lima", reasoning="always"), atol=1e-5)


def test_what_it_loaded_can_be_saved(extractor, tmp_path, model):
    """transformers writes classes into the description of a pipeline: they must not end in a config."""
    extractor.model.save_pretrained(tmp_path)
    extractor.processor.save_pretrained(tmp_path)
    again = pipeline("feature-extraction", str(tmp_path), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again("Lima"), model.encode("Lima"), atol=1e-5)


def test_code_is_run_with_permission_only(tiny_checkpoint):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        pipeline("feature-extraction", str(tiny_checkpoint), trust_remote_code=False)
