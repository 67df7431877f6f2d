"""The first model that shares the base gives what a copy of it gives, whatever the adapters have become."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.training.adapters import lora_config, with_adapters
from mmemb_r1.training.first_model import FirstModel

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")]
SIX_DIGITS = {"rtol": 1e-6, "atol": 1e-6}


@torch.no_grad()
def moved(model, by=0.05):
    """Change all that is trained, as training does."""
    draw = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.add_(by * torch.randn(weight.shape, generator=draw))
    return model


@pytest.fixture(params=["fresh", "trained before"])
def adapted(vivid, request):
    """A model with adapters: new ones, which change nothing yet, or those of an earlier run."""
    wrapped = with_adapters(vivid, lora_config(vivid, r=2, dropout=0.3)).train()
    return wrapped if request.param == "fresh" else moved(wrapped)


@torch.no_grad()
def seen(model, processor):
    batch = render(processor, to_conversations(["say red", "a longer one, blue and white"]))
    labels = batch["input_ids"].masked_fill(~batch["attention_mask"].bool(), -100)
    output = model(**batch, labels=labels)
    return output.embeddings, output.gate_logits, output.rationale_logps


def test_it_is_what_a_copy_is(adapted, processor):
    whole = copy.deepcopy(adapted).eval()
    first = FirstModel(adapted)
    moved(adapted)
    present = seen(adapted.eval(), processor)
    adapted.train()
    with first.run() as model:
        found = seen(model, processor)
    assert adapted.training and adapted.get_base_model().training
    for ours, theirs, now in zip(found, seen(whole, processor), present, strict=True):
        torch.testing.assert_close(ours, theirs, **SIX_DIGITS)
        assert not torch.allclose(ours, now, rtol=1e-3, atol=1e-3)
    for ours, now in zip(seen(adapted.eval(), processor), present, strict=True):
        assert torch.equal(ours, now)  # and the present one is there again


def test_under_autocast_too_it_is_the_first_one(adapted, processor):
    """Which keeps the weights that it has cast, here the present ones."""
    first = FirstModel(adapted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = seen(adapted.eval(), processor)
    moved(adapted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        present = seen(adapted, processor)
        with first.run() as model:
            found = seen(model, processor)
        again = seen(adapted, processor)
    for ours, theirs, now, later in zip(found, before, present, again, strict=True):
        assert torch.equal(ours, theirs) and not torch.equal(ours, now) and torch.equal(now, later)


def test_the_present_weights_come_back_after_an_error(adapted):
    first, before = FirstModel(adapted), copy.deepcopy(adapted.state_dict())
    moved(adapted)
    present = copy.deepcopy(adapted.state_dict())
    with pytest.raises(RuntimeError, match="as planned"), first.run():
        raise RuntimeError("as planned")
    assert all(torch.equal(value, present[name]) for name, value in adapted.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in present.items())


def test_nothing_that_is_frozen_is_kept_twice(adapted):
    first = FirstModel(adapted)
    kept = sum(value.numel() for _, value in first._first)
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert first.shares and kept == trained < 0.2 * sum(weight.numel() for weight in adapted.parameters())


def test_a_model_that_is_trained_whole_is_copied(vivid, processor):
    expected = seen(vivid.eval(), processor)
    first = FirstModel(vivid)
    moved(vivid)
    with first.run() as model:
        assert model is not vivid and not any(weight.requires_grad for weight in model.parameters())
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen(model, processor), expected, strict=True))


def test_trained_weights_get_their_dtype_back(adapted):
    """TRL makes those above quantised weights bfloat16."""
    first = FirstModel(adapted)
    before = [weight.detach().clone() for weight in adapted.parameters() if weight.requires_grad]
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data.bfloat16()
    first.restore_dtype()
    after = [weight for weight in adapted.parameters() if weight.requires_grad]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(after, before, strict=True))
    moved(adapted)  # what is trained is not what is kept
    assert all(torch.equal(kept, theirs) for (_, kept), theirs in zip(first._first, before, strict=True))


@pytest.mark.parametrize("kind", ["fresh", pytest.param("trained before", marks=pytest.mark.slow)])
def test_beta_holds_adapters_close_to_where_they_began(trainer_of, vivid, rows, kind, monkeypatch):
    """Losses, divergences and weights are those of a run whose reference is a copy of the whole model."""

    def trained(as_copy):
        wrapped = with_adapters(copy.deepcopy(vivid), lora_config(vivid, r=2)).train()
        if kind == "trained before":
            moved(wrapped, 0.01)
        if as_copy:
            monkeypatch.setattr(FirstModel, "run", copied(copy.deepcopy(wrapped).get_base_model().eval()))
        torch.manual_seed(0)
        trainer = trainer_of(wrapped, rows, beta=0.2, max_steps=2, optim="sgd", learning_rate=0.02)
        trainer.train()
        logs = [(log["loss"], log["kl"]) for log in trainer.state.log_history if "loss" in log]
        return logs, {name: weight for name, weight in wrapped.named_parameters() if weight.requires_grad}

    logs, weights = trained(as_copy=False)
    expected_logs, expected = trained(as_copy=True)
    for ours, theirs in zip(logs, expected_logs, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    assert logs[0][1] == pytest.approx(0.0, abs=1e-6) and logs[-1][1] > 0 and math.isfinite(logs[-1][0])
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, **SIX_DIGITS)


def copied(model):
    """A `FirstModel.run` that gives a copy of the model."""
    from contextlib import contextmanager

    @contextmanager
    def run(self):
        yield model

    return run
