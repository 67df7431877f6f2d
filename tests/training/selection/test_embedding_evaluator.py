from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmemb_r1 import MMEmbR1
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training.selection.embedding_evaluator import EmbeddingEvaluator
from mmemb_r1.training.selection.evaluator import Trial, TrialError

TOLERANCE = {"rtol": 1e-4, "atol": 2e-3}  # of logits, which are cosines times 20
RATIONALES = [None, "Red and white, so it is Peru.", "It is <|embed|> green."]


def picture(color):
    return Image.new("RGB", (64, 64), color)


FLAG, NAMES = {"image": [picture("red")], "text": "which country?"}, [{"text": "Peru"}, {"text": "Chile, a long one"}]
TRIALS = [
    Trial("query", FLAG, NAMES, RATIONALES),
    Trial("target", {"text": "Peru"}, [FLAG, {"text": "Lima"}], [None, "A country."]),
    Trial("query", {"text": "a very short one", "instruction": "Be brief."}, NAMES[:1], RATIONALES[:2]),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Weights as large as those of a trained model: a random one hardly reads what it gets."""
    folder = tmp_path_factory.mktemp("evaluator") / "checkpoint"
    vlm, processor = build_tiny_vlm("qwen3_vl")
    with torch.no_grad():
        for parameter in vlm.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    MMEmbR1.from_vlm(vlm, processor).save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def model(checkpoint):
    return MMEmbR1(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def evaluator(checkpoint):
    return EmbeddingEvaluator(checkpoint, temperature=0.05, bias=0.25, batch_size=3, device="cpu")


def direct(model, inputs):
    return torch.from_numpy(np.stack(model.encode(inputs, reasoning="never")))


@torch.no_grad()
def reasoned(model, value, rationale):
    """The last vector of the whole sequence, put together by hand."""
    network, config = model[0].model, model[0].model.config
    batch = dict(render(model.processor, to_conversations([value])))
    ids = model.tokenizer(rationale, add_special_tokens=False)["input_ids"]
    suffix = torch.tensor([[config.think_token_id, *ids, config.end_think_token_id, config.embed_token_id]])
    for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if key in batch:
            tail = {"input_ids": suffix, "attention_mask": suffix.new_ones(suffix.shape)}.get(key, 0 * suffix)
            batch[key] = torch.cat([batch[key], tail], dim=1)
    output = network(**batch)
    assert output.path_mask.tolist() == [[True, True]]
    return output.embeddings[0, -1]


def test_without_a_rationale_it_is_the_cosine_of_direct_vectors(evaluator, model):
    for trial, logits in zip(TRIALS, evaluator.match_logits(TRIALS), strict=True):
        cosines = direct(model, list(trial.others)) @ direct(model, [trial.anchor])[0]
        torch.testing.assert_close(logits[:, 0], (cosines - 0.25) / 0.05, **TOLERANCE)


def test_a_rationale_is_read_as_if_the_model_had_thought_it(evaluator, model):
    for trial, logits in zip(TRIALS, evaluator.match_logits(TRIALS), strict=True):
        expected = direct(model, list(trial.others)) @ reasoned(model, trial.anchor, trial.rationales[1])
        torch.testing.assert_close(logits[:, 1], (expected - 0.25) / 0.05, **TOLERANCE)
        assert not torch.allclose(logits[:, 0], logits[:, 1], atol=1e-2)


def test_a_batch_is_its_parts(evaluator):
    together = evaluator.match_logits(TRIALS)
    for trial, logits in zip(TRIALS, together, strict=True):
        assert logits.shape == (len(trial.others), len(trial.rationales))
        assert logits.dtype == torch.float32
        torch.testing.assert_close(evaluator.match_logits([trial])[0], logits, **TOLERANCE)
        one = Trial(trial.side, trial.anchor, trial.others[-1:], trial.rationales[::-1])
        torch.testing.assert_close(evaluator.match_logits([one])[0], logits[-1:].flip(1), **TOLERANCE)


def test_control_tokens_in_a_rationale_are_plain_text(evaluator):
    with_marker = Trial("query", FLAG, NAMES, ["It is <|embed|> green."])
    cut = Trial("query", FLAG, NAMES, ["It is"])
    assert not torch.allclose(*(evaluator.match_logits([trial])[0] for trial in (with_marker, cut)), atol=1e-2)


def test_nothing_is_embedded_twice(evaluator, monkeypatch):
    rows = []
    network = evaluator._encoder[0].model
    forward = type(network).forward
    monkeypatch.setattr(
        type(network), "forward", lambda self, **batch: rows.append(len(batch["input_ids"])) or forward(self, **batch)
    )
    evaluator.match_logits(TRIALS)
    # flag x 3, Peru x 2, Chile, Lima, the short one x 2
    assert sum(rows) == 9


def test_no_trials(evaluator):
    assert evaluator.match_logits([]) == []


def test_an_input_that_cannot_be_read_is_named(evaluator):
    missing = Trial("target", {"text": "Peru"}, [{"image": "missing.png"}], [None])
    with pytest.raises(TrialError, match=r"of its query, there is no image file 'missing\.png'") as caught:
        evaluator.match_logits([*TRIALS, missing])
    assert caught.value.index == 3
    with pytest.raises(TrialError, match="Trial 0 can't be answered: of its target, it is empty"):
        evaluator.match_logits([Trial("target", {"text": " "}, NAMES, [None])])


def test_the_definition_is_what_determines_the_answers(checkpoint, evaluator):
    expected = {"kind": "embedding", "model": Path(checkpoint).name, "temperature": 0.05, "bias": 0.25}
    definition = dict(evaluator.definition)
    weights = definition.pop("weights")
    assert definition == expected
    other = EmbeddingEvaluator(checkpoint, device="cpu", batch_size=1)
    assert other.definition["weights"] == weights


def test_the_definition_tells_checkpoints_in_the_same_folder_apart(tmp_path):
    definitions = []
    for seed in (0, 1):
        MMEmbR1.from_vlm(*build_tiny_vlm("qwen3_vl", seed=seed)).save_pretrained(str(tmp_path))
        definitions.append(EmbeddingEvaluator(str(tmp_path), device="cpu").definition)
    assert definitions[0] != definitions[1]


def test_refuses_what_it_cannot_use(tmp_path):
    with pytest.raises(ValueError, match="temperature=0 has to be positive"):
        EmbeddingEvaluator("x", temperature=0)
    for part in build_tiny_vlm("qwen3_vl"):
        part.save_pretrained(tmp_path / "vlm")
    with pytest.raises(ValueError, match="is no mmemb-r1 checkpoint"):
        EmbeddingEvaluator(str(tmp_path / "vlm"), device="cpu")
