"""Tokenizers are shared between threads: nothing uses one beside another thread."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers import PreTrainedTokenizerFast

from mmemb_r1.modeling.locking_mmemb_r1 import is_tokenizing
from mmemb_r1.rationale_tokens import rationale_ids
from mmemb_r1.tiny import FAMILIES

PICTURE = Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_way_to_a_vector_uses_a_tokenizer_outside_the_lock(thinking, monkeypatch, tmp_path, family):
    """One thread's padding would be that of another's: Idefics3 asks its tokenizer for a picture's size."""
    model = thinking(family, max_reasoning_tokens=2)
    model.max_text_tokens = 8
    called, original = [], PreTrainedTokenizerFast._encode_plus

    def watched(self, *args, **options):
        called.append(is_tokenizing())
        return original(self, *args, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", watched)
    inputs = ["Lima", "word " * 30, {"image": PICTURE, "text": "a flag"}]
    model.encode(inputs, reasoning="always")
    model.encode(inputs, prompt="Find the flag.", reasoning="never", batch_size=1)
    model.explain(inputs, reasoning="always")
    model.encode_stream(inputs, tmp_path / "vectors", reasoning="never")
    rationale_ids(model.processor, "It is red.")
    assert len(called) > 8
    assert all(called)
