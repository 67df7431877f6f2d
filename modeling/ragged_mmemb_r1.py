"""
Keep key-value caches of rows of different lengths, without padding to the longest of them.

Rows that think together come from different prompts and are at different places of their rationales: in one buffer,
most of what is stored and read at every step would be padding. Here rows of like length share a buffer, and attention
runs buffer by buffer; everything else of a layer runs over all rows at once. A row that grows out of its buffer moves
to the next larger one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .caching_mmemb_r1 import places_kept

ATTENTION = "mmemb_r1_ragged"  # the name under which transformers knows `ragged_attention`
PLAIN = "sdpa"  # which it computes, buffer by buffer


def columns_for(length: int) -> int:
    """
    Round a row's length up to the columns of its buffer: two sizes from each power of two to the next.

    >>> [columns_for(length) for length in (1, 16, 17, 40, 48, 49, 65, 97, 129)]
    [16, 16, 24, 48, 48, 64, 96, 128, 192]
    """
    step = max(1 << (length - 1).bit_length() >> 2, 8)
    return max(-(-length // step) * step, 16)


@dataclass(frozen=True)
class Step:
    """
    Say where all layers put the tokens of one step, and what they read; rows are in the order of their buffers.

    Attributes:
        columns: of each buffer.
        sizes: rows of each.
        widths: columns of each that are in use.
        slots: of each, `(n,)`, those that are taken: 0, 1, ...
        places: of each, `(n,)`, the column of each row's new token.
        masks: of each, `(n, 1, 1, width)`, which columns a row attends to; `None`: to all.
    """

    columns: list[int]
    sizes: list[int]
    widths: list[int]
    slots: list[Tensor]
    places: list[Tensor]
    masks: list[Tensor | None]

    @classmethod
    def of(cls, groups: dict[int, list[int]], lengths: Sequence[int], device: torch.device) -> Step:
        """Plan a step for groups of rows of so many tokens each, the new one not counted."""
        sizes = [len(rows) for rows in groups.values()]
        after = [[lengths[row] + 1 for row in rows] for rows in groups.values()]
        ends = torch.tensor([length for group in after for length in group], device=device).split(sizes)
        masks = [
            None if min(group) == max(group) else torch.arange(max(group), device=device) < own[:, None, None, None]
            for group, own in zip(after, ends, strict=True)
        ]
        slots = [torch.arange(size, device=device) for size in sizes]
        return cls(list(groups), sizes, [max(group) for group in after], slots, [own - 1 for own in ends], masks)

    def to(self, device: torch.device) -> Step:
        """Copy the step to another device: a model may be spread over several."""
        masks = [None if mask is None else mask.to(device) for mask in self.masks]
        slots, places = ([part.to(device) for part in parts] for parts in (self.slots, self.places))
        return Step(self.columns, self.sizes, self.widths, slots, places, masks)


class RaggedLayer(CacheLayerMixin):
    """
    Hold one layer's keys and values: number of columns -> a buffer of both, `(2, slots, heads, columns, head_dim)`.

    `update` returns the new keys, by which [`ragged_attention`] finds the layer.
    """

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.is_initialized = True
        self.buffers: dict[int, Tensor] = {}
        self.step: Step | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: rows come by `put`."""

    def get_seq_length(self) -> int:
        """Get the columns of the largest buffer."""
        return max(self.buffers, default=0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Get the sizes of a mask for all rows, which nothing here reads."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def reserve(self, columns: int, used: int, slots: int, like: Tensor) -> None:
        """
        Let a buffer have at least so many slots, of which the first `used` are taken; `like` keys or values of it,
        `(..., heads, length, head_dim)`.
        """
        if columns not in self.buffers or self.buffers[columns].shape[1] < slots:
            self._resize(columns, used, slots + slots // 8, like)

    def put(self, columns: int, used: int, states: Tensor) -> None:
        """Write rows `(2, n, heads, length, head_dim)` behind the `used` ones of a buffer that has the slots."""
        slots, length = used + states.shape[1], states.shape[3]
        buffer = self.buffers[columns]
        buffer[:, used:slots, :, :length] = states
        buffer[:, used:slots, :, length:] = 0  # what is masked still has to be a number

    def keep(self, columns: int, order: Sequence[int]) -> None:
        """Keep the rows in the slots `order` of a buffer, in this order; it is let go of, or shrinks, if many left."""
        if not order:
            del self.buffers[columns]
            return
        buffer = self.buffers[columns]
        moved = [place for place, slot in enumerate(order) if place != slot]
        if moved:
            buffer[:, moved] = buffer[:, [order[place] for place in moved]]
        if 3 * len(order) <= 2 * buffer.shape[1]:
            self._resize(columns, len(order), len(order), buffer)

    def _resize(self, columns: int, used: int, slots: int, like: Tensor) -> None:
        new = like.new_zeros(2, slots, like.shape[-3], columns, like.shape[-1])
        if used:
            new[:, :used] = self.buffers[columns][:, :used]
        self.buffers[columns] = new

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take the step's keys and values `(N, heads, 1, head_dim)`, in the order of the buffers."""
        if self.step is None or key_states.shape[2] != 1:
            raise RuntimeError("A ragged cache takes one token per row, after `RaggedCache.begin_step`.")
        step = self.step
        both = torch.stack([key_states.squeeze(2), value_states.squeeze(2)], dim=1)  # (N, 2, heads, head_dim)
        parts = zip(step.columns, step.slots, step.places, both.split(step.sizes), strict=True)
        for columns, slots, places, part in parts:
            self.buffers[columns][:, slots, :, places] = part
        key_states.ragged_layer = self  # type: ignore[attr-defined]
        return key_states, value_states

    def attend(self, module: nn.Module, query: Tensor, **kwargs: Any) -> Tensor:
        """Attend with the step's queries `(N, heads, 1, head_dim)` -> `(N, 1, heads, head_dim)`."""
        step, outputs = self.step, []
        if step is None:
            raise RuntimeError("The step of this layer was attended to already.")
        parts = zip(step.columns, step.sizes, step.widths, step.masks, query.split(step.sizes), strict=True)
        for columns, size, width, mask, part in parts:
            keys, values = self.buffers[columns][:, :size, :, :width]
            outputs.append(sdpa_attention_forward(module, part, keys, values, mask, **kwargs)[0])
        self.step = None
        return torch.cat(outputs)


def ragged_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Compute transformers' `sdpa`; over a [`RaggedLayer`], buffer by buffer."""
    layer = getattr(key, "ragged_layer", None)
    if layer is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return layer.attend(module, query, **kwargs), None


AttentionInterface.register(ATTENTION, ragged_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class RaggedCache(Cache):
    """
    Hold the keys and values of N rows.

    Attributes:
        lengths: tokens of each row.
        groups: columns of a buffer -> its rows, one per slot.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[RaggedLayer() for _ in range(num_layers)])
        self.lengths: list[int] = []
        self.groups: dict[int, list[int]] = {}

    @classmethod
    def of(cls, cache: Any, rows: Sequence[int], lengths: Sequence[int]) -> RaggedCache:
        """Copy some rows of a cache that is padded on the left; of each, its last tokens."""
        new = cls(len(cache.layers))
        new.lengths = list(lengths)
        for place, length in enumerate(lengths):
            new.groups.setdefault(columns_for(length + 1), []).append(place)
        for layer, source in zip(new.layers, cache.layers, strict=True):
            for columns, group in new.groups.items():
                layer.reserve(columns, 0, len(group), source.keys)
                for slot, place in enumerate(group):
                    row, length = rows[place], lengths[place]
                    pair = (states[row : row + 1, :, -length:] for states in (source.keys, source.values))
                    layer.put(columns, slot, torch.stack(tuple(pair)))
        return new

    def join(self, other: RaggedCache) -> None:
        """Add the rows of another one, which is used up."""
        first = len(self.lengths)
        self.lengths += other.lengths
        for columns, rows in other.groups.items():
            group = self.groups.setdefault(columns, [])
            for layer, source in zip(self.layers, other.layers, strict=True):
                states = source.buffers.pop(columns)[:, : len(rows)]
                layer.reserve(columns, len(group), len(group) + len(rows), states)
                layer.put(columns, len(group), states)
            group += [first + row for row in rows]

    def keep(self, order: Sequence[int]) -> None:
        """Keep the rows `order`, which are then numbered anew."""
        number = {row: place for place, row in enumerate(order)}
        self.lengths = [self.lengths[row] for row in order]
        for columns, rows in list(self.groups.items()):
            self._keep_slots(columns, [slot for slot, row in enumerate(rows) if row in number])
        self.groups = {columns: [number[row] for row in rows] for columns, rows in self.groups.items()}

    def _keep_slots(self, columns: int, stay: list[int]) -> None:
        rows = self.groups[columns]
        if len(stay) == len(rows):
            return
        order = places_kept(stay)
        for layer in self.layers:
            layer.keep(columns, order)
        self.groups[columns] = [rows[slot] for slot in order]
        if not order:
            del self.groups[columns]

    def begin_step(self, device: torch.device) -> Tensor:
        """
        Make room for one more token per row.

        Returns:
            `(N,)`, the rows in the order of the buffers, in which their tokens have to be fed.

        Raises:
            RuntimeError: if a layer's last step was not attended to: its attention is not [`ragged_attention`].
        """
        if any(layer.step is not None for layer in self.layers):
            raise RuntimeError(
                "A ragged cache was not attended to: the backbone's attention does not go through "
                f"transformers' AttentionInterface as {ATTENTION!r}."
            )
        for columns in sorted(self.groups, reverse=True):
            full = [slot for slot, row in enumerate(self.groups[columns]) if self.lengths[row] == columns]
            if full:
                self._move(columns, full)
        step = Step.of(self.groups, self.lengths, device)
        steps = {device: step}
        for layer in self.layers:
            where = next(iter(layer.buffers.values())).device
            if where not in steps:
                steps[where] = step.to(where)
            layer.step = steps[where]
        self.lengths = [length + 1 for length in self.lengths]
        return torch.tensor([row for rows in self.groups.values() for row in rows], device=device)

    def _move(self, columns: int, full: list[int]) -> None:
        """Move rows that fill their buffer to the next larger one."""
        larger, rows = columns_for(columns + 1), self.groups[columns]
        group = self.groups.setdefault(larger, [])
        for layer in self.layers:
            states = layer.buffers[columns][:, full]
            layer.reserve(larger, len(group), len(group) + len(full), states)
            layer.put(larger, len(group), states)
        group += [rows[slot] for slot in full]
        leaving = set(full)
        self._keep_slots(columns, [slot for slot in range(len(rows)) if slot not in leaving])


def attend_ragged(decoder: Any) -> None:
    """Let the language model compute attention over ragged caches, too; over others it stays the same."""
    decoder.config._attn_implementation = ATTENTION
