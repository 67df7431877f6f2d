"""Keep the model as it was when training began: what measures rewards, and what training is held close to."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
from mmemb_r1.training.distributed import evaluating, whole_weights


class FirstModel:
    """
    Hold a model as it is now, to be run later without a gradient.

    Of a model that is trained whole it is a copy. A model with adapters shares all that is frozen: kept are only its
    trained weights (adapters, heads, rows of control tokens), in float32 about a hundredth of it, and they take the
    place of the present ones while it is run. So nothing has to be known about how the adapters begin, and quantised
    weights are never copied.

    Args:
        model: the policy, before its first step; a `PeftModel` if it has adapters.
    """

    def __init__(self, model: Any) -> None:
        self.shares = hasattr(model, "peft_config")
        self._plugin: Any = None  # where the copy is sharded
        self._model = model if self.shares else copy.deepcopy(model).eval().requires_grad_(False)
        self._first = [
            (weight, weight.detach().clone()) for weight in model.parameters() if self.shares and weight.requires_grad
        ]

    def to(self, device: torch.device) -> None:
        """Move it to where the policy is."""
        if not self.shares:
            self._model.to(device)
        self._first = [(weight, first.to(device)) for weight, first in self._first]

    def shard(self, accelerator: Any) -> None:
        """Shard a copy over the processes, as accelerate's FSDP2 shards the policy."""
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        self._plugin = accelerator.state.fsdp_plugin
        self._model = fsdp2_prepare_model(accelerator, self._model)

    def restore_dtype(self) -> None:
        """Undo a change of the trained weights' dtype: TRL makes them bfloat16, where small steps vanish."""
        for weight, first in self._first:
            if weight.dtype != first.dtype:
                weight.data = first.to(weight.device, copy=True)

    @contextmanager
    def run(self) -> Iterator[MMEmbR1Model]:
        """Give the first model, in eval mode, for the length of a block, in which nothing may be trained."""
        if not self.shares:
            with whole_weights(self._model, self._plugin):
                yield self._model
            return
        base = self._model.get_base_model()
        with evaluating(base):
            self._swap()
            try:
                yield base
            finally:
                self._swap()

    def trained(self) -> list[Tensor]:
        """Copy the present weights of all that is trained of a model with adapters."""
        return [weight.detach().clone() for weight, _ in self._first]

    @torch.no_grad()
    def blend(self, trained: Sequence[Tensor], share: float) -> None:
        """Give the model with adapters, but for its gate, a share of the way from its first to `trained` weights."""
        gate = {id(weight) for weight in self._model.get_base_model().gate.parameters()}
        for (weight, first), last in zip(self._first, trained, strict=True):
            if id(weight) not in gate:
                weight.copy_(torch.lerp(first.to(last), last, share))
        torch.clear_autocast_cache()

    def _swap(self) -> None:
        for place, (weight, first) in enumerate(self._first):
            self._first[place] = (weight, weight.data)
            weight.data = first
        torch.clear_autocast_cache()  # it keeps weights in bfloat16 by their place, and would not see others there
