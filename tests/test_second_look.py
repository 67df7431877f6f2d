"""`encode` looks again at the vector after a rationale, if the model has learnt to."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import main
from mmemb_r1.embedding_cache import EmbeddingCache
from mmemb_r1.thinker import Thought

WEIGHTS = {"bias": 0.5, "mean_logp": 0.6, "least_logp": 0.1, "length": -0.7, "cosine": -1.1, "gate_logit": 0.4}
INPUTS = ["Lima", "word " * 30, {"text": "Oslo", "instruction": "Find the capital."}]


@pytest.fixture
def model(thinking) -> MMEmbR1:
    return thinking(max_reasoning_tokens=4, second_look=WEIGHTS)


def close(actual, expected) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), atol=2e-5, rtol=0)


def test_an_option_of_encode(model, tmp_path):
    on, off = (model.encode(INPUTS, reasoning="always", second_look=look) for look in (None, False))
    assert np.abs(on - off).max() > 0.01
    np.testing.assert_array_equal(on, model.encode(INPUTS, reasoning="always", second_look=True))
    direct = model.encode(INPUTS, reasoning="never")
    for row, told in enumerate(model.explain(INPUTS, reasoning="always")):
        weight = told["second_look_weight"]
        mixture = (1 - weight) * direct[row] + weight * off[row]
        close(told["embedding"], mixture / np.linalg.norm(mixture))
    assert "second_look_weight" not in model.explain("Lima", reasoning="always", second_look=False)
    assert "second_look_weight" not in model.explain("Lima", reasoning="never")
    model.save_pretrained(str(tmp_path))
    again = MMEmbR1(str(tmp_path), device="cpu")
    assert again[0].model.config.second_look == WEIGHTS
    close(again.encode(INPUTS, reasoning="always"), on)


def test_the_command_turns_it_off(model, tmp_path):
    model.save_pretrained(str(tmp_path / "model"))
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, INPUTS)), encoding="utf-8")
    for look, flags in ((None, []), (False, ["--no-second-look"])):
        command = [
            "encode",
            "--model",
            str(tmp_path / "model"),
            "--input",
            str(tmp_path / "in.jsonl"),
            "--device",
            "cpu",
        ]
        assert main([*command, "--reasoning", "always", "--output", str(tmp_path / "out.npy"), *flags]) == 0
        close(np.load(tmp_path / "out.npy"), model.encode(INPUTS, reasoning="always", second_look=look))


def test_the_cache_tells_both_apart(model, tmp_path):
    on, off = (model.encode(INPUTS, reasoning="always", second_look=look) for look in (True, False))
    with EmbeddingCache(tmp_path) as cache:
        model.embedding_cache = cache
        for _ in range(2):
            close(model.encode(INPUTS, reasoning="always"), on)
            close(model.encode(INPUTS, reasoning="always", second_look=False), off)


def test_vectors_are_mixed_before_they_are_shortened(model):
    whole = torch.from_numpy(model.encode(INPUTS, reasoning="always"))
    short = model.encode(INPUTS, reasoning="always", truncate_dim=6)
    close(short, torch.nn.functional.normalize(whole[:, :6], dim=-1))


def test_a_model_without_one_refuses_to_look_again(thinking):
    model = thinking(max_reasoning_tokens=4)
    with pytest.raises(ValueError, match="train gate --second-look"):
        model.encode(INPUTS, reasoning="always", second_look=True)
    assert "second_look_weight" not in model.explain("Lima", reasoning="always")


def test_the_rationale_of_another_has_no_likelihood(model):
    class Thinker:
        definition = {"kind": "says"}  # noqa: RUF012 - nobody changes it

        def think(self, inputs, max_tokens):
            for number, _ in enumerate(inputs):
                yield number, Thought("so red")

    model.set_thinker(Thinker())
    with pytest.raises(ValueError, match="pass second_look=False"):
        model.encode(INPUTS, reasoning="always")
    assert model.encode(INPUTS, reasoning="always", second_look=False).shape[0] == len(INPUTS)
    assert model.encode(INPUTS, reasoning="never").shape[0] == len(INPUTS)
