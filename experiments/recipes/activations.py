"""
Measure what a decoder layer keeps for the backward pass, by token, on tiny layers, and find what it is in large ones.

What is kept of a token grows linearly with each width of a layer: of its states, of its feed-forward network, of its
queries and of its keys. So a few tiny layers on the CPU tell the bytes of each width, exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch

from experiments.recipes.sizes import Size, build
from mmemb_r1.training.adapters import lora_config, with_adapters

KINDS = ("full", "lora", "sharded")  # float32 weights under autocast; bfloat16 below adapters; FSDP2: all bfloat16
TOKENS = (64, 128)
RANK = 16
_TINY = Size(
    layers=1, hidden=64, intermediate=64, heads=4, kv_heads=2, head_dim=128, vocabulary=32, tied=True,
    vision_layers=1, vision_hidden=32, vision_intermediate=32, vision_heads=2, deepstack=(0,),
)  # fmt: skip
# Several keys, each of several heads: of one alone, copies for all heads would take no memory.
_WIDER = ({}, {"hidden": 128}, {"intermediate": 192}, {"heads": 8}, {"heads": 8, "kv_heads": 4})


def bytes_per_token(size: Size, kind: str) -> float:
    """
    Bytes that one decoder layer keeps of each token for its backward pass, without activation checkpointing.

    Args:
        size: the model's; any width.
        kind: of `KINDS`: how weights and computation are.
    """
    return float(_widths(size) @ _coefficients(kind))


@cache
def _coefficients(kind: str) -> np.ndarray:
    sizes = [replace(_TINY, **change) for change in _WIDER]
    return np.linalg.solve([_widths(size) for size in sizes], [measured(size, kind) for size in sizes])


def _widths(size: Size) -> np.ndarray:
    return np.array([1, size.hidden, size.intermediate, size.heads * size.head_dim, size.kv_heads * size.head_dim])


def measured(size: Size, kind: str) -> float:
    """Measure the same on a model of that size, on the CPU: the difference that one layer makes for one token."""
    few, many = TOKENS
    kept = [
        kept_bytes(replace(size, layers=layers), kind, tokens)
        for layers, tokens in ((1, few), (1, many), (2, few), (2, many))
    ]
    return (kept[3] - kept[2] - kept[1] + kept[0]) / (2 * (many - few))


def vision_bytes_per_patch(size: Size, kind: str) -> float:
    """Bytes that one layer of a vision tower that is trained keeps of each patch, likewise."""
    return float(np.array([1, size.vision_hidden, size.vision_intermediate]) @ _vision_coefficients(kind))


@cache
def _vision_coefficients(kind: str) -> np.ndarray:
    tiny = replace(_TINY, vision_hidden=128, vision_intermediate=256)
    sizes = [tiny, replace(tiny, vision_hidden=256, vision_heads=4), replace(tiny, vision_intermediate=512)]
    widths = [[1, size.vision_hidden, size.vision_intermediate] for size in sizes]
    return np.linalg.solve(widths, [measured_vision(size, kind) for size in sizes])


def measured_vision(size: Size, kind: str) -> float:
    """Measure the same on a layer of that size, on the CPU: the difference that a patch makes."""
    layer = build(size, "cpu").vlm.base_model.get_encoder(modality="image").blocks[0]
    layer = layer.to(torch.float32 if kind == "full" else torch.bfloat16)
    dtype = next(layer.parameters()).dtype

    def kept(patches: int) -> int:
        states = torch.randn(patches, size.vision_hidden, dtype=dtype, requires_grad=True)
        angles = torch.randn(patches, size.vision_hidden // size.vision_heads)
        ends = torch.tensor([0, patches], dtype=torch.int32)
        rotary = angles.cos(), angles.sin()
        return _kept_by(layer, kind, lambda: layer(states, cu_seqlens=ends, position_embeddings=rotary))

    few, many = TOKENS
    return (kept(many) - kept(few)) / (many - few)


def kept_bytes(size: Size, kind: str, tokens: int) -> int:
    """Run two inputs of so many tokens, and sum the memory of what is kept for the backward pass but parameters."""
    model = build(size, "cpu").to(torch.float32 if kind == "full" else torch.bfloat16)
    if kind == "lora":
        model = with_adapters(model, lora_config(model, r=RANK))
    ids = torch.full((2, tokens), 5)
    ids[:, -1] = 1
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # batches are padded: attention is given a mask then
    return _kept_by(model, kind, lambda: model(input_ids=ids, attention_mask=mask))


def _kept_by(model: torch.nn.Module, kind: str, run: Callable[[], Any]) -> int:
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # themselves, so that none is freed and its place taken by another

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=kind != "sharded"):
            output = run()  # held until the sum is taken
    del output
    return sum(storage.nbytes() for storage in kept.values())
