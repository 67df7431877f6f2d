"""
Keep key-value caches of rows that think: tokens are written in place, rows leave without a copy of the rest, and rows
of several prefills come together.

transformers' `DynamicCache` copies everything with every token and with every row that leaves. Here the layers of full
attention, which hold nearly all of it, have room to the right; other layers stay transformers' own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

LEAST_ROOM = 16  # columns: a growing buffer is copied at most once in so many tokens


class RoomyLayer(DynamicLayer):
    """
    Hold keys and values as the left part of buffers `(N, heads, columns, head_dim)` with room for more columns.

    `keys` and `values`, which transformers reads, are views of the buffers.
    """

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], widths: Sequence[int]) -> None:
        """
        Copy rows of one or several caches, aligned on the right.

        Args:
            keys, values: of each, `(N, heads, columns, head_dim)`; they are copied.
            widths: how many of its last columns each needs; the rest is padding.
        """
        super().__init__()
        self.lazy_initialization(keys[0], values[0])
        self._take(keys, values, widths)

    def _take(self, keys: Sequence[Tensor], values: Sequence[Tensor], widths: Sequence[int], room: int = 0) -> None:
        """Move to new buffers, with at least so much room."""
        rows, width = sum(map(len, keys)), max(widths)
        columns = width + max(LEAST_ROOM, width // 8, room)
        self._buffers = tuple(
            parts[0].new_zeros(rows, parts[0].shape[1], columns, parts[0].shape[3]) for parts in (keys, values)
        )
        for buffer, parts in zip(self._buffers, (keys, values), strict=True):
            for place, own, states in zip(buffer.split([len(part) for part in parts]), widths, parts, strict=True):
                place[:, :, width - own : width] = states[:, :, states.shape[2] - own :]
        self._show(rows, width)

    def _make_room(self, room: int = 0) -> None:
        """Move to new buffers if these have no room, or transformers gave the layer keys that are not in them."""
        columns = self.keys.shape[-2]
        if columns + room > self._buffers[0].shape[-2] or self.keys.data_ptr() != self._buffers[0].data_ptr():
            self._take([self.keys], [self.values], [columns], room)

    def _show(self, rows: int, columns: int) -> None:
        self.keys, self.values = (buffer[:rows, :, :columns] for buffer in self._buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append columns `(N, heads, T, head_dim)` and return all."""
        rows, _, columns, _ = self.keys.shape
        total = columns + key_states.shape[-2]
        self._make_room(total - columns)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, columns:total] = states
        self._show(rows, total)
        return self.keys, self.values

    def keep(self, order: Tensor, moved: Tensor) -> None:
        """Keep the rows `order` `(n,)`, of which `moved` (positions in it) change their place."""
        self._make_room()
        for states in (self.keys, self.values):
            states[moved] = states[order[moved]]
        self._show(len(order), self.keys.shape[-2])


def branched(cache: Any, rows: Tensor) -> Any:
    """Copy the given rows `(N,)`, any of them left out or repeated, with room; `cache` stays as it is."""
    new = copy.copy(cache)
    new.layers = [_branched(layer, rows) for layer in cache.layers]
    return new


def _branched(layer: Any, rows: Tensor) -> Any:
    if type(layer) in (DynamicLayer, RoomyLayer) and layer.get_seq_length():
        return RoomyLayer([layer.keys[rows]], [layer.values[rows]], [layer.get_seq_length()])
    new = copy.copy(layer)
    for name, value in vars(layer).items():  # some keep their states in dicts, which would be shared
        if isinstance(value, dict):
            setattr(new, name, dict(value))
    new.reorder_cache(rows)  # recurrent layers have no `batch_select_indices`
    return new


def places_kept(stay: list[int]) -> list[int]:
    """
    List which row each place holds after only the rows `stay` are kept: rows whose place is still there stay in it,
    the others fill the gaps.

    >>> places_kept([0, 2, 3])
    [0, 3, 2]
    """
    places = list(range(len(stay)))
    kept = set(stay)
    movers = iter([row for row in stay if row >= len(stay)])
    return [place if place in kept else next(movers) for place in places]


def keep(cache: Any, order: Tensor) -> None:
    """Keep the rows `order` `(n,)`, from [`places_kept`], in place."""
    moved = (order != torch.arange(len(order), device=order.device)).nonzero().squeeze(-1)
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer):
            layer.keep(order, moved)
        else:
            layer.reorder_cache(order)


def joined(first: Any, second: Any, widths: tuple[int, int]) -> Any:
    """
    Join the rows of two caches, aligned on the right.

    Args:
        first, second: caches of the same model; used up.
        widths: how many of its last columns each needs; the rest is padding.
    """
    width = max(widths)
    new, layers = copy.copy(first), []
    while first.layers:  # layer by layer, so that what was joined is freed
        pair = first.layers.pop(0), second.layers.pop(0)
        keys, values = [one.keys for one in pair], [one.values for one in pair]
        if isinstance(pair[0], DynamicSlidingWindowLayer):
            layer = copy.copy(pair[0])
            layer.keys, layer.values = (_window(parts, widths, layer.sliding_window - 1) for parts in (keys, values))
            layer.cumulative_length = width
            layers.append(layer)
        else:
            layers.append(RoomyLayer(keys, values, widths))
    new.layers = layers
    return new


def _window(parts: Sequence[Tensor], widths: Sequence[int], columns: int) -> Tensor:
    """Cut rows `(N, heads, columns, head_dim)`, of which each part needs so many columns, to their last `columns`."""
    width = max(widths)
    needed = [states[:, :, max(states.shape[2] - own, 0) :] for states, own in zip(parts, widths, strict=True)]
    return torch.cat([nn.functional.pad(states, (0, 0, width - states.shape[2], 0)) for states in needed])[
        :, :, -columns:
    ]
