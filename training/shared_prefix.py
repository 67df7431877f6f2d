"""Read a prompt once, pictures included, and continue it many times: sample from it, or score suffixes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mmemb_r1.modeling.backbones_mmemb_r1 import (
    cache_of,
    next_positions,
    rotary_positions,
    token_positions,
    with_cache,
)
from mmemb_r1.modeling.caching_mmemb_r1 import RoomyLayer, branched
from mmemb_r1.modeling.decoding_mmemb_r1 import left_padded


@dataclass
class Prefix:
    """Hold what the backbone keeps of the tokens that it has read, with padding between them where the mask is 0."""

    cache: Any  # of keys and values
    mask: Tensor  # (B, S) attention mask of the tokens so far; the last column is real in every row
    offset: Tensor  # (B, 1) a token's rotary position minus its index in the row (multimodal RoPE)
    logits: Tensor  # (B, V) float32, of the token that comes next

    def __len__(self) -> int:
        return len(self.mask)

    def select(self, rows: Tensor) -> Prefix:
        """Keep the given rows `(N,)`; the cache is changed in place."""
        self.cache.reorder_cache(rows)
        return self.of(self.cache, rows)

    def of(self, cache: Any, rows: Tensor) -> Prefix:
        """Take the given rows, with a `cache` that holds them already."""
        return Prefix(cache, self.mask[rows], self.offset[rows], self.logits[rows])


@torch.no_grad()
def read_prefix(vlm: Any, batch: Mapping[str, Any]) -> Prefix:
    """
    Read prompts, each with its media, once.

    Args:
        vlm: an `AutoModelForImageTextToText`.
        batch: what a processor gave (`input_ids` and `attention_mask` `(B, S)`, pixel values ...), padded on the left
            (otherwise: `ValueError`); it is moved to the model's device and dtype.
    """
    inputs = {key: _placed(value, vlm) for key, value in batch.items()}
    input_ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
    _require_last_column(mask, "prompts")
    position_ids, offset = rotary_positions(vlm, input_ids, mask, inputs)
    output = vlm(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=position_ids,
        use_cache=True,
        logits_to_keep=1,
        return_dict=True,
        **inputs,
    )
    return Prefix(cache_of(output), mask, offset, output.logits[:, -1].float())


def branch(prefix: Prefix, rows: Tensor) -> Prefix:
    """
    Copy rows, `(N,)`, to continue each in its own way; a row may be left out or repeated, and `prefix` stays as it is.

    K continuations of each prompt, side by side: `torch.arange(B).repeat_interleave(K)`.
    """
    rows = rows.to(prefix.mask.device)
    return prefix.of(branched(prefix.cache, rows), rows)


@torch.no_grad()
def extend(vlm: Any, prefix: Prefix, token_ids: Tensor, token_mask: Tensor | None = None) -> Prefix:
    """
    Go on reading: append tokens to every row.

    Args:
        vlm: the model that read the prefix.
        prefix: is used up, as its cache grows in place; to go on from it more than once, `branch` it.
        token_ids, token_mask: `(B, T)` ids, and which are real (default: all); short suffixes are padded on the left.

    Raises:
        ValueError: if shapes don't fit, a suffix is empty or padded on the right, or suffixes of different length
            can't be read together because the model has a sliding window shorter than the whole or a recurrent state.
    """
    if token_mask is None:
        token_mask = torch.ones_like(token_ids)
    if token_ids.ndim != 2 or len(token_ids) != len(prefix) or token_mask.shape != token_ids.shape:
        raise ValueError(
            f"Got ids of shape {tuple(token_ids.shape)} and a mask of shape {tuple(token_mask.shape)} for a prefix of "
            f"{len(prefix)} rows; both have to be (rows, tokens)."
        )
    _require_last_column(token_mask, "suffixes")
    device = prefix.mask.device
    mask = torch.cat([prefix.mask, token_mask.to(device, prefix.mask.dtype)], dim=1)  # (B, S) -> (B, S + T)
    if mask.shape[1] > _reach(prefix.cache) and left_padded(mask) is not None:
        raise ValueError(
            f"Rows of {mask.shape[1]} tokens with padding inside don't fit this model: padding would take the place "
            f"of tokens in its window of {_reach(prefix.cache)}, or in its recurrent state. Extend suffixes of one "
            "length at a time, or call suffix_logits, which does."
        )
    numbers = token_positions(mask)[:, -token_ids.shape[1] :]  # (B, T)
    output = vlm(
        input_ids=token_ids.to(device),
        attention_mask=mask,
        position_ids=next_positions(vlm, numbers, prefix.offset),
        **with_cache(vlm, prefix.cache),
        use_cache=True,
        logits_to_keep=1,
        return_dict=True,
    )
    return Prefix(cache_of(output), mask, prefix.offset, output.logits[:, -1].float())


def suffix_logits(
    vlm: Any,
    prefix: Prefix,
    rows: Sequence[int],
    suffixes: Sequence[Sequence[int]],
    batch_size: int = 64,
) -> Tensor:
    """
    Compute the logits `(N, V)` float32 of the token after each suffix; the prefix is not read again, and stays.

    Suffix n, of any length, continues prompt `rows[n]`. At most `batch_size` of similar length are read at once.
    """
    if len(rows) != len(suffixes):
        raise ValueError(f"Got {len(rows)} rows for {len(suffixes)} suffixes; they have to be as many.")
    logits = prefix.logits[list(rows)]  # (N, V); right already where the suffix is empty
    order = sorted((index for index, suffix in enumerate(suffixes) if suffix), key=lambda index: len(suffixes[index]))
    while order:
        # the longest first: if memory is short, that is known at once
        chosen = order[-batch_size:]
        longest = len(suffixes[chosen[-1]])
        if prefix.mask.shape[1] + longest > _reach(prefix.cache):
            chosen = [index for index in chosen if len(suffixes[index]) == longest]
        del order[-len(chosen) :]
        ids = [[0] * (longest - len(suffixes[index])) + list(suffixes[index]) for index in chosen]
        mask = [[int(column >= longest - len(suffixes[index])) for column in range(longest)] for index in chosen]
        branches = branch(prefix, torch.tensor([rows[index] for index in chosen]))
        logits[chosen] = extend(vlm, branches, torch.tensor(ids), torch.tensor(mask)).logits
    return logits


def _placed(value: Any, vlm: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(vlm.device, vlm.dtype if value.is_floating_point() else None)


def _require_last_column(mask: Tensor, what: str) -> None:
    if not mask.shape[1] or not bool(mask[:, -1].all()):
        raise ValueError(f"The {what} are empty or padded on the right in some row; pad them on the left.")


def _reach(cache: Any) -> float:
    """Count the columns, padding included, up to which every token attends to all before it."""
    reach = math.inf
    for layer in cache.layers:
        if isinstance(layer, DynamicSlidingWindowLayer):
            reach = min(reach, layer.sliding_window)
        elif type(layer) not in (DynamicLayer, RoomyLayer):  # recurrent states: not known to skip padding
            return 0
    return reach
