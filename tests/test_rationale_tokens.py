"""Embedding after thoughts that are given."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.rationale_tokens import forced_embeddings, rationale_suffix

INPUTS = [
    {"text": "a rather long question about nothing in particular?"},
    {"text": "what is it?", "image": [Image.new("RGB", (64, 64), "red")]},
    {"text": "short", "instruction": "Be brief."},
    {"image": [Image.new("RGB", (96, 64), "blue")]},
]
TEXTS = ["It is red.", "", "It is a thought of some more words, so that rows differ in length.", "blue"]


@pytest.fixture(scope="module", params=["qwen3_vl", "smolvlm"])
def model(thinking, request):
    return thinking(request.param, max_reasoning_tokens=5)


def ids(model, text):
    return rationale_suffix(model.processor, model[0].model.config, text)


def test_without_a_thought_it_is_the_direct_vector(model):
    forced = forced_embeddings(model, INPUTS, [[]] * 4, batch_size=3)
    direct = model.encode(INPUTS, reasoning="never", convert_to_tensor=True)
    torch.testing.assert_close(forced.direct, direct, rtol=0, atol=1e-4)
    assert torch.equal(forced.last, forced.direct)


def test_the_models_own_thought_gives_the_vector_of_encode(model):
    items = model.encode(INPUTS, reasoning="always", output_value=None)
    config = model[0].model.config
    suffixes = [
        [config.think_token_id, *(token for token in item["rationale_ids"].tolist() if token >= 0)]
        + [config.end_think_token_id, config.embed_token_id]
        for item in items
    ]
    forced = forced_embeddings(model, INPUTS, suffixes, batch_size=3)
    thought = torch.stack([item["sentence_embedding"] for item in items])
    torch.testing.assert_close(forced.last, thought, rtol=0, atol=1e-4)
    assert (forced.last * forced.direct).sum(dim=1).max() < 0.99


def test_a_row_does_not_depend_on_its_neighbours(model):
    suffixes = [ids(model, text) for text in TEXTS]
    together = forced_embeddings(model, INPUTS, suffixes, batch_size=4)
    for row in range(4):
        alone = forced_embeddings(model, [INPUTS[row]], [suffixes[row]])
        torch.testing.assert_close(alone.last[0], together.last[row], rtol=0, atol=1e-4)
        torch.testing.assert_close(alone.direct[0], together.direct[row], rtol=0, atol=1e-4)


def test_a_prompt_is_the_instruction_of_inputs_without_their_own(thinking):
    model = thinking()
    suffixes = [ids(model, text) for text in TEXTS]
    plain, asked = (forced_embeddings(model, INPUTS, suffixes, prompt=prompt).last for prompt in (None, "Name it."))
    written = forced_embeddings(model, [{"instruction": "Name it.", **value} for value in INPUTS], suffixes).last
    torch.testing.assert_close(asked, written, rtol=0, atol=1e-4)
    same = (plain - asked).abs().amax(dim=1) < 1e-4
    assert same.tolist() == [False, False, True, False]


def test_errors_name_the_input(thinking):
    model, done = thinking(), []
    with pytest.raises(InputError, match="Input 1 can't be embedded"):
        forced_embeddings(model, ["a", {"image": "none.png"}, "b"], [[]] * 3, batch_size=1)
    with pytest.raises(ValueError, match="Got 2 inputs and 1 suffixes"):
        forced_embeddings(model, ["a", "b"], [[]])
    forced_embeddings(model, ["a", "b", "c"], [[]] * 3, batch_size=2, advance=done.append)
    assert sum(done) == 3 and len(done) == 2
