"""Fine-tuning with sentence-transformers' own trainer and losses: of the direct embedding, and without decoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor

from mmemb_r1 import MMEmbR1
from mmemb_r1.modeling.decoding_mmemb_r1 import Decoder
from mmemb_r1.tiny import FAMILIES, build_tiny_vlm

pytestmark = pytest.mark.usefixtures("one_thread")
COLORS = ["red", "green", "blue", "white", "black", "yellow", "purple", "orange"]
STEPS = 20
THINKS = {"gate_threshold": 0.0}  # then every input thinks, wherever the gate is asked


def picture(color: str) -> Image.Image:
    return Image.new("RGB", (64, 64), color)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of rows of every batch of which some thought."""
    seen: list[int] = []
    original = Decoder.add

    def add(decoder: Decoder, context: Any, rows: Any, thoughts: Sequence[Any], num_read: int) -> None:
        seen.append(len(thoughts))
        original(decoder, context, rows, thoughts, num_read)

    monkeypatch.setattr(Decoder, "add", add)
    return seen


@pytest.fixture
def rows() -> Dataset:
    """Questions about pictures, and one in text alone, with what answers them and what does not."""
    questions = [{"text": "What is this?", "image": picture(color)} for color in COLORS[:-1]]
    columns = {
        "query": [*questions, {"text": "What is orange?", "image": None}],
        "positive": [f"This is {color}." for color in COLORS],
        "negative": [picture(color) for color in COLORS[1:] + COLORS[:1]],
    }
    features = {
        "query": {"text": Value("string"), "image": ImageFeature()},
        "positive": Value("string"),
        "negative": ImageFeature(),
    }
    return Dataset.from_dict(columns, features=Features(features))


@pytest.mark.parametrize("cached", [pytest.param(True, marks=pytest.mark.slow), False])
def test_fine_tuning(cached, tiny_checkpoint: Path, rows, decoded, tmp_path):
    """The loss falls, no step decodes, and what was learned is saved."""
    model = MMEmbR1(str(tiny_checkpoint), device="cpu", config_kwargs=THINKS)
    inputs = [rows[0]["query"], "This is red.", picture("red")]
    before = model.encode(inputs, reasoning="never")
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    assert model.explain("This is red.", task="query")["reasoned"]
    decoded.clear()

    if cached:
        loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=3)
    else:
        loss = MultipleNegativesRankingLoss(model)
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"),
        max_steps=STEPS,
        per_device_train_batch_size=len(rows),
        learning_rate=3e-3,
        seed=0,
        logging_steps=1,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(model, arguments, rows, loss=loss)
    trainer.train()
    assert decoded == []
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == STEPS
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5
    gate = {id(weight) for weight in model[0].model.gate.parameters()}  # no contrastive loss reads it
    for name, weight in model.named_parameters():
        assert torch.equal(weight, weights[name]) == (id(weight) in gate), name

    after = model.encode(inputs, reasoning="never")
    assert np.abs(after - before).max() > 1e-2
    model.save_pretrained(str(tmp_path / "model"))
    loaded = MMEmbR1(str(tmp_path / "model"), device="cpu")
    decoded.clear()
    np.testing.assert_allclose(loaded.encode(inputs, reasoning="never"), after, atol=1e-5)
    asked, known = (one.encode(inputs, task="query") for one in (loaded, model))
    np.testing.assert_allclose(asked, known, atol=1e-5)
    assert decoded == [len(inputs)] * 2  # the gate is asked again


@pytest.mark.slow
def test_an_evaluator_chooses_the_best_checkpoint(tiny_checkpoint: Path, rows, tmp_path):
    """The same as in the joint phase: hit@1 of queries that think where the gate says so."""
    from mmemb_r1.evaluation import RetrievalEvaluator

    model = MMEmbR1(str(tiny_checkpoint), device="cpu", config_kwargs={**THINKS, "max_reasoning_tokens": 2})
    held_out = Dataset.from_list(
        [{"query": {"text": f"say {color}"}, "target": {"text": f"This is {color}."}} for color in COLORS]
    )
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=len(rows),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="auto_mrr",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    evaluator = RetrievalEvaluator(held_out, ["never", "auto"])
    loss = MultipleNegativesRankingLoss(model)
    trainer = SentenceTransformerTrainer(model, arguments, rows, loss=loss, evaluator=evaluator)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "eval_auto_mrr" in log]
    assert [log["step"] for log in logs] == [1, 2] and all(log["eval_auto_invocation_ratio"] == 1 for log in logs)
    assert trainer.state.best_metric == max(log["eval_auto_mrr"] for log in logs)
    assert evaluator(trainer.model)["auto_mrr"] == pytest.approx(trainer.state.best_metric)


def test_losses_decode_nothing_that_was_not_asked_for(tiny_checkpoint, decoded):
    """Gradients may be off there, too: a loss that caches them embeds without them first, evaluation has none."""
    model = MMEmbR1(str(tiny_checkpoint), device="cpu", config_kwargs=THINKS).train()
    features = model.preprocess(["Lima", picture("red")])
    with torch.no_grad():
        first = model(dict(features))["sentence_embedding"]
    assert decoded == []
    torch.testing.assert_close(first, model(dict(features))["sentence_embedding"])
    model.eval()
    with torch.no_grad():  # the loss of an evaluation
        torch.testing.assert_close(model(dict(features))["sentence_embedding"], first)
    assert decoded == []
    with torch.no_grad():
        asked = model(dict(features), reasoning="always")
    assert decoded == [2]
    assert asked["reasoned"].all()


def contrastive(model: MMEmbR1, loss: Any, sides: Sequence[list[Any]]) -> tuple[float, dict[str, Tensor]]:
    """A loss over a whole batch and its gradients by name."""
    model.train().zero_grad()
    value = loss([dict(model.preprocess(side)) for side in sides], None)
    value.backward()
    return value.item(), {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }


def assert_caching_changes_nothing(model: MMEmbR1, sides: Sequence[list[Any]], sizes: Sequence[int]) -> None:
    loss, expected = contrastive(model, MultipleNegativesRankingLoss(model), sides)
    assert loss > 1e-2
    scale = max(gradient.abs().max() for gradient in expected.values())
    assert scale > 0
    for size in sizes:
        cached, actual = contrastive(model, CachedMultipleNegativesRankingLoss(model, mini_batch_size=size), sides)
        assert cached == pytest.approx(loss, abs=1e-4)
        assert actual.keys() == expected.keys()
        for name, gradient in actual.items():
            torch.testing.assert_close(gradient / scale, expected[name] / scale, rtol=1e-4, atol=1e-5, msg=name)


ANSWERS = ["This is red.", "blue", "a green square", "It is the largest."]


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_cached_gradients_are_the_plain_ones(threshold):
    """One picture a row; whatever the gate says."""
    model = MMEmbR1.from_vlm(*build_tiny_vlm("qwen3_vl"), gate_threshold=threshold, max_reasoning_tokens=3)
    questions = [{"text": "What is this?", "image": picture(color)} for color in COLORS[:4]]
    assert_caching_changes_nothing(model, [questions, ANSWERS], (1, 3, 4))


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_gradients_of_mixed_rows_are_the_plain_ones(family):
    """Rows with no, one and two pictures are split where the rows are, not where the pictures are."""
    model = MMEmbR1.from_vlm(*build_tiny_vlm(family))
    questions = [
        "What is the capital of Peru?",
        picture("blue"),
        {"text": "Which of the two?", "image": [picture("green"), picture("white")]},
        "Lima",
    ]
    assert_caching_changes_nothing(model, [questions, [*ANSWERS[:3], picture("black")]], (1, 2))
