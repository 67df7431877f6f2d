"""vLLM loads the plain folder of a direct path by its name alone, and gives the vectors of `reasoning="never"`."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmemb_r1.export import export_direct

TEXTS = [
    "What is the capital of Peru?",
    "Lima is a flag",
    "dog",
    "a <|image_pad|> b <think>",
    "One word, please. " * 9,
]
NAVY = Image.new("RGB", (300, 160), "navy")


def close(theirs, ours):
    np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "fields", [{}, {"embedding_dim": 32, "truncate_dim": 8}, {"pooling": "mean"}, {"normalize": False}]
)
def test_vectors_in_process(fields, make_vllm_model, make_llm, tmp_path):
    model = make_vllm_model(**fields)
    export_direct(model, tmp_path / "direct")
    llm = make_llm(tmp_path / "direct")
    render = llm.get_tokenizer().apply_chat_template
    prompts = [render([{"role": "user", "content": text}], tokenize=False) for text in TEXTS]
    outputs = llm.embed(prompts, use_tqdm=False)
    ours = model.encode(TEXTS, reasoning="never")
    scale = 1 if fields.get("normalize", True) else np.abs(ours).max()
    close(np.array([output.outputs.embedding for output in outputs]) / scale, ours / scale)
    assert np.abs(ours[0] - ours[1]).max() / scale > 1e-2


def test_vectors_of_a_server(vllm_model, start_server, picture_part, tmp_path):
    export_direct(vllm_model, tmp_path / "direct")
    server = start_server(tmp_path / "direct")
    instruction = "Find what is asked for."

    def asked(*parts):
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": parts}]
        return server.vectors(server.ask("embeddings", messages=messages, encoding_format="base64"))[0]

    picture, text = picture_part(NAVY), {"type": "text", "text": TEXTS[0]}
    theirs = [asked(text), asked(picture), asked(text, picture)]
    inputs = [TEXTS[0], NAVY, {"image": NAVY, "text": TEXTS[0]}]
    ours = vllm_model.encode(inputs, prompt=instruction, reasoning="never")
    close(theirs, ours)
    assert np.abs(ours[0] - ours[1]).max() > 1e-2
