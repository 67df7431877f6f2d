from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmemb_r1.training.gate import StandardisedGate


def inputs(count=400):
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-1, 1, 16)
    return torch.randn(count, 16, generator=generator) * scale + 30.0  # much in common


@pytest.mark.parametrize("outputs", [1, 3])
def test_it_is_adam_on_standardised_inputs(outputs):
    hidden = inputs()
    torch.manual_seed(0)
    layer = nn.Linear(16, outputs).double()
    plain = nn.Linear(16, outputs).double()
    mean, scale = hidden.double().mean(dim=0), hidden.double().std(dim=0, correction=0)
    with torch.no_grad():
        plain.weight.copy_(layer.weight * scale)
        plain.bias.copy_(layer.bias + layer.weight @ mean)
    optimizers = [torch.optim.AdamW(part.parameters(), lr=0.05, weight_decay=0.0) for part in (layer, plain)]
    StandardisedGate(layer.weight, layer.bias, hidden).attach(optimizers[0])
    target = (hidden[:, :1] > 30).double()
    for _ in range(20):
        losses = []
        for optimizer, part, given in zip(
            optimizers, (layer, plain), (hidden.double(), (hidden.double() - mean) / scale), strict=True
        ):
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(part(given), target.expand(-1, outputs))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_inputs_have_in_common_does_not_swing_the_gate():
    """Half of the inputs want it up, half down: without standardising, all go together."""
    hidden, swings = inputs(), {}
    for name in ("plain", "standardised"):
        torch.manual_seed(0)
        layer = nn.Linear(16, 1)
        nn.init.zeros_(layer.weight)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        if name == "standardised":
            StandardisedGate(layer.weight, layer.bias, hidden).attach(optimizer)
        means = []
        for step in range(30):
            rows = hidden[step * 8 : step * 8 + 8]
            wanted = torch.sign(rows[:, 15] - 30)
            optimizer.zero_grad()
            (-(layer(rows).squeeze(1) * wanted)).mean().backward()
            optimizer.step()
            means.append(layer(hidden).mean().item())
        swings[name] = max(map(abs, means))
    assert swings["standardised"] < 0.2 < swings["plain"]


def test_a_step_without_a_gradient_changes_nothing():
    layer = nn.Linear(16, 1)
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = torch.optim.Adam(layer.parameters())
    StandardisedGate(layer.weight, layer.bias, inputs()).attach(optimizer)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before[0])
    torch.testing.assert_close(layer.bias.detach(), before[1], rtol=1e-4, atol=1e-4)


def test_a_dimension_that_does_not_vary_is_no_division_by_zero():
    hidden = inputs()
    hidden[:, 3] = 7.0
    layer = nn.Linear(16, 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    StandardisedGate(layer.weight, layer.bias, hidden).attach(optimizer)
    layer(hidden).sum().backward()
    optimizer.step()
    assert layer.weight.isfinite().all() and layer.bias.isfinite().all()


def test_a_step_before_there_are_inputs_is_left_alone():
    """FSDP2 takes one, at a learning rate of 0, to make the state of an optimiser that goes on."""
    layer, ready = nn.Linear(16, 1), []
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    StandardisedGate(layer.weight, layer.bias, lambda: ready[0] if ready else None).attach(optimizer)
    before = layer.weight.detach().clone()
    layer.weight.grad, layer.bias.grad = torch.ones(1, 16), torch.ones(1)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before - 0.1)
    ready.append(inputs())
    layer.weight.grad, layer.bias.grad = torch.ones(1, 16), torch.ones(1)
    optimizer.step()
    assert not torch.allclose(layer.weight.detach(), before - 0.2)


def test_parameters_that_take_the_place_of_others_in_the_optimiser_are_followed():
    """FSDP2 puts sharded ones there."""
    layer, other, hidden = nn.Linear(16, 1), nn.Linear(16, 1), inputs()
    expected = copy.deepcopy(other)
    results = []
    for part, first in ((other, layer), (expected, expected)):
        optimizer = torch.optim.Adam(first.parameters(), lr=0.1)
        StandardisedGate(first.weight, first.bias, hidden).attach(optimizer)
        optimizer.param_groups[0]["params"] = [part.weight, part.bias]
        part(hidden[:4]).sum().backward()
        optimizer.step()
        results.append(part.weight.detach())
    assert torch.equal(*results)
