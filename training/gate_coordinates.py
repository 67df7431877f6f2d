"""Optimising the gate in coordinates in which its inputs are standardised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LEAST_SCALE = 1e-3  # of the largest deviation: a dimension that hardly varies is not blown up


class StandardisedGate:
    """
    Lets an optimiser see a layer's weights as if its inputs had mean 0 and deviation 1.

    Hidden states have a large part in common. A step of Adam along it moves the logits of all inputs together, by the
    learning rate times the states' 1-norm, and drowns what tells inputs apart. With inputs (h - mean) / scale, weights
    v = w * scale and the bias b + w mean, the layer computes the same, and what inputs have in common is the bias's.

    Around each step of the optimiser, weights and gradients are changed to these coordinates and back; its moments are
    of these coordinates. Between steps the layer is as it always is, also when it is saved.

    Args:
        weight: `(O, H)`.
        bias: `(O,)`.
        hidden: `(N, H)` inputs to standardise by.

    Source: ours.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter, hidden: Tensor) -> None:
        self.weight, self.bias = weight, bias
        hidden = hidden.to(weight.device, torch.float32)
        self.mean = hidden.mean(dim=0).to(weight.dtype)  # (H,)
        scale = hidden.std(dim=0, correction=0)
        self.scale = scale.clamp(min=max(LEAST_SCALE * float(scale.max()), 1e-8)).to(weight.dtype)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Do so around each step of this optimiser from now on."""
        optimizer.register_step_pre_hook(self._enter)
        optimizer.register_step_post_hook(self._leave)

    @torch.no_grad()
    def _enter(self, *_: Any) -> None:
        self.bias.add_(self.weight @ self.mean)
        self.weight.mul_(self.scale)
        if self.weight.grad is not None and self.bias.grad is not None:
            self.weight.grad.sub_(self.bias.grad[:, None] * self.mean).div_(self.scale)

    @torch.no_grad()
    def _leave(self, *_: Any) -> None:
        self.weight.div_(self.scale)
        self.bias.sub_(self.weight @ self.mean)
