"""Running the sides of a batch through the model, at once or with gradient caching."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import get_device_states, set_device_states

from mmemb_r1.training.joint_collator import IGNORED, Chunk, SideBatch


class Vectors(NamedTuple):
    """
    What the contrastive terms and the gate's are made of, for U inputs.

    Attributes:
        embeddings: `(U, K, D)`, per path.
        path_mask: `(U, K)` bool, which of them exist.
        gate_logits: `(U, K)` of thinking (again) after each.
    """

    embeddings: Tensor
    path_mask: Tensor
    gate_logits: Tensor


def encode(model: nn.Module, chunk: Chunk, with_tokens: bool = True) -> tuple[Vectors, Tensor]:
    """
    One forward pass. The gate's loss leaves everything but the gate alone.

    Args:
        model: the model, or the model with adapters.
        chunk: b inputs; they are moved to the model's device.
        with_tokens: whether log-probabilities of the rationale tokens are computed.

    Returns:
        The vectors of the b inputs, and `(N,)` log-probabilities.
    """
    device = next(model.parameters()).device
    features = {name: value.to(device, non_blocking=True) for name, value in chunk["features"].items()}
    if not with_tokens:
        features["labels"] = torch.full_like(features["labels"], IGNORED)
    output = model(**features, detach_gate=True)
    return Vectors(output.embeddings, output.path_mask, output.gate_logits), output.rationale_logps


def in_order(side: SideBatch, parts: list[Vectors]) -> Vectors:
    """The vectors of a side's chunks as those of its inputs, in their order."""
    paths = max(part.path_mask.shape[1] for part in parts)
    order = side["order"].to(parts[0].embeddings.device)

    def joined(name: str) -> Tensor:
        filled = []
        for part in parts:
            value = getattr(part, name)  # (b, k) or (b, k, D)
            extra = paths - value.shape[1]
            filled.append(functional.pad(value, (0, 0) * (value.ndim - 2) + (0, extra)))  # (b, K) or (b, K, D)
        return torch.cat(filled)[order]

    return Vectors(*(joined(name) for name in Vectors._fields))


class RandomState(NamedTuple):
    """The state of the random generators that dropout reads, on the CPU and on one device."""

    cpu: Tensor
    devices: list[int]
    states: list[Tensor]

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        """What it is at this moment."""
        return cls(torch.get_rng_state(), *get_device_states(torch.empty(0, device=device)))

    @contextmanager
    def restored(self, device: torch.device) -> Iterator[None]:
        """Be in that state for a while."""
        with torch.random.fork_rng(self.devices, device_type=device.type if self.devices else "cuda"):
            torch.set_rng_state(self.cpu)
            set_device_states(self.devices, self.states, device_type=device.type)
            yield
