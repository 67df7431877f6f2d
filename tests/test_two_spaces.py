"""A model whose direct and reasoned vectors can't be compared, as UME-R1: nothing puts both side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import pipeline

from mmemb_r1 import MMEmbR1, MMEmbR1Config
from mmemb_r1.modeling.tokens_mmemb_r1 import Controls
from mmemb_r1.tiny import build_tiny_vlm

MIXED = 'reasoning="auto" would mix vectors of two spaces'
TEXTS = ["What is the capital of Peru?", "A dog.", "The largest is 7."]


@pytest.fixture(scope="module")
def model() -> MMEmbR1:
    vlm, processor = build_tiny_vlm("qwen2_vl")
    controls = Controls("<disc_emb>", "\nThink, and end in <gen_emb>.\n", "<gen_emb>", reasoned_marker=None)
    fields: dict[str, Any] = {"spaces": 2, "reasoning": "never", "max_reasoning_tokens": 3, "gate_init_bias": 0.0}
    return MMEmbR1.from_vlm(vlm, processor, controls=controls, **fields)


def test_every_way_to_mix_them_in_one_array_is_refused(model, tmp_path):
    for encode in (model.encode, model.encode_query, model.encode_document):
        with pytest.raises(ValueError, match=MIXED):
            encode(TEXTS, reasoning="auto")
    with pytest.raises(ValueError, match=MIXED):
        model.encode_stream(TEXTS, tmp_path / "vectors", reasoning="auto")
    assert not (tmp_path / "vectors").exists()
    with pytest.raises(ValueError, match=MIXED):
        SentenceTransformer(modules=[model[0]]).encode(TEXTS, reasoning="auto")
    model.save_pretrained(str(tmp_path / "model"))
    embed = pipeline("feature-extraction", str(tmp_path / "model"), trust_remote_code=True, device="cpu")
    with pytest.raises(ValueError, match=MIXED):
        embed(TEXTS[0], reasoning="auto")


def test_one_space_is_encoded_as_ever_and_auto_tells_which_it_is(model):
    vectors = {mode: model.encode(TEXTS, reasoning=mode) for mode in ("never", "always")}
    assert np.abs(vectors["never"] - vectors["always"]).max() > 1e-3
    for threshold, mode in ((0.0, "always"), (1.0, "never")):
        for row, item in enumerate(model.explain(TEXTS, reasoning="auto", gate_threshold=threshold)):
            assert item["reasoned"] == (mode == "always")
            np.testing.assert_allclose(item["embedding"], vectors[mode][row], atol=1e-5)


def test_defaults_of_two_spaces_are_refused():
    with pytest.raises(ValueError, match="reasoning='always' for queries and document_reasoning='never'"):
        MMEmbR1Config(spaces=2, reasoning="always", document_reasoning="never")
