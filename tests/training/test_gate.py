from __future__ import annotations

import copy
import math

import pytest
import torch

from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config
from mmemb_r1.modeling.heads_mmemb_r1 import ReasoningGate
from mmemb_r1.training.gate import fit_gate, gate_loss, input_scale


@pytest.fixture(params=[0, 8], ids=["linear", "hidden layer"])
def gate(request, tiny):
    torch.manual_seed(0)
    config = MMEmbR1Config(vlm_config=copy.deepcopy(tiny[0].config.vlm_config), gate_hidden_size=request.param)
    gate = ReasoningGate(config)
    gate.reset()
    return gate


def test_the_gate_learns_where_thinking_pays(gate):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(400, 32, generator=generator)
    gap = 0.3 * hidden[:, 3] + 0.05 * torch.randn(400, generator=generator)
    facts = fit_gate(gate, hidden, gap, cost=0.0, weight_decay=1e-3)
    fresh = torch.randn(200, 32, generator=generator)
    with torch.no_grad():
        right = ((gate(fresh) > 0) == (fresh[:, 3] > 0)).float().mean()
    assert right > 0.9
    assert facts["thinks"] == pytest.approx(facts["pays"], abs=0.05)
    assert all(parameter.grad is None for parameter in gate.parameters())


def test_a_higher_cost_thinks_less(gate):
    hidden = torch.randn(400, 32, generator=torch.Generator().manual_seed(0))
    gap = 0.3 * hidden[:, 3]
    cheap = fit_gate(gate, hidden, gap, cost=0.0, weight_decay=1e-3)["thinks"]
    gate.reset()
    assert fit_gate(gate, hidden, gap, cost=0.4, weight_decay=1e-3)["thinks"] < cheap / 2


def test_small_inputs_are_fitted_as_well_as_large_ones(gate):
    """Word embeddings are a hundred times smaller than states: without the scale, the decay would leave them out."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.cat(
        [torch.randn(400, 16, generator=generator), 0.01 * torch.randn(400, 16, generator=generator)], dim=1
    )
    gap = 30 * inputs[:, 20]
    scale = input_scale(inputs, ["state", "words"])
    assert torch.equal(scale[:16], torch.ones(16)) and scale[16:] == pytest.approx(0.01, rel=0.1)
    right = []
    for one in (None, scale):
        torch.manual_seed(0)
        gate.reset()
        fit_gate(gate, inputs, gap, cost=0.0, weight_decay=1e-2, scale=one)
        with torch.no_grad():
            right.append(float(((gate(inputs) > 0) == (gap > 0)).float().mean()))
    assert right[1] > 0.9 and right[1] > right[0] + 0.1
    assert input_scale(inputs[:, 16:], ["words"]) == pytest.approx(0.01, rel=0.1)


def test_inputs_with_nothing_at_stake_do_not_count():
    logits, gap = torch.tensor([0.3, 5.0]), torch.tensor([0.5, 0.1])
    assert gate_loss(logits, gap, cost=0.1).item() == pytest.approx(math.log1p(math.exp(-0.3)))


def test_where_nothing_is_gained_a_price_keeps_the_gate_from_thinking(gate):
    """
    Two kinds of inputs: some gain or lose much, others always nothing. Without a price nothing is at stake for the
    others, and the gate thinks wherever the rest of its weights take it; with one, it leaves them alone.
    """
    generator = torch.Generator().manual_seed(0)
    kind = (torch.arange(400) % 2).bool()
    hidden = torch.randn(400, 32, generator=generator)
    hidden[:, 3] = torch.where(kind, 1.0, -1.0)
    gap = torch.where(kind, 0.4 + 0.3 * hidden[:, 5], torch.zeros(400))
    tokens = torch.randint(8, 24, (400,), generator=generator)
    thinks = []
    for price in (0.0, 0.004):
        gate.reset()
        fit_gate(gate, hidden, gap, cost=price * tokens, weight_decay=1e-3)
        with torch.no_grad():
            thinks.append((gate(hidden) > 0).float())
    assert thinks[0][~kind].mean() > 0.3 and thinks[1][~kind].mean() < 0.02
    assert thinks[1][kind].mean() > 0.8


def test_weights_count_inputs_several_times(gate):
    logits, gap = torch.tensor([0.3, -1.0]), torch.tensor([0.5, 0.2])
    twice = gate_loss(logits[[0, 0, 1]], gap[[0, 0, 1]], cost=0.1)
    torch.testing.assert_close(gate_loss(logits, gap, 0.1, torch.tensor([2.0, 1.0])), twice)
    hidden, gap = torch.tensor([[1.0] * 32, [1.0] * 32]), torch.tensor([0.5, -0.5])
    for weights, thinks in ((torch.tensor([3.0, 1.0]), 1.0), (torch.tensor([1.0, 3.0]), 0.0)):
        gate.reset()
        assert fit_gate(gate, hidden, gap, cost=0.0, weights=weights)["thinks"] == thinks


def test_nothing_to_fit_on_is_refused(gate):
    with pytest.raises(ValueError, match="0 inputs and 0 gaps"):
        fit_gate(gate, torch.zeros(0, 32), torch.zeros(0))
    with pytest.raises(ValueError, match="2 inputs and 3 gaps"):
        fit_gate(gate, torch.zeros(2, 32), torch.zeros(3))
