"""Caches that are written in place hold what transformers' own would."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from mmemb_r1.modeling.backbones_mmemb_r1 import can_join
from mmemb_r1.modeling.caching_mmemb_r1 import LEAST_ROOM, RoomyLayer, branched, joined, keep, places_kept

HEADS, WIDTH = 2, 3


def states(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, HEADS, columns, WIDTH, generator=generator) for _ in range(2))  # type: ignore[return-value]


def cache_of(rows: int, columns: int, seed: int = 0, window: int | None = None) -> DynamicCache:
    cache = DynamicCache()
    cache.layers = [DynamicLayer() if window is None else DynamicSlidingWindowLayer(window)]
    cache.update(*states(rows, columns, seed), 0)
    return cache


def shown(cache: Any) -> Tensor:
    return torch.stack([cache.layers[0].keys, cache.layers[0].values])


def test_columns_are_appended_in_place():
    plain, roomy = cache_of(3, 4), branched(cache_of(3, 4), torch.arange(3))
    places = set()
    for step in range(3 * LEAST_ROOM):
        for cache in (plain, roomy):
            keys, values = cache.update(*states(3, 100 if step == 40 else 1 + step % 2, seed=step), 0)
        assert torch.equal(shown(roomy), shown(plain))
        assert torch.equal(shown(roomy), torch.stack([keys, values]))
        assert roomy.get_seq_length() == plain.get_seq_length()
        places.add(roomy.layers[0].keys.data_ptr())
    assert len(places) < 12  # buffers, for 244 columns in 96 steps


def test_rows_leave_in_place():
    plain, roomy = cache_of(5, 4), branched(cache_of(5, 4), torch.arange(5))
    before = roomy.layers[0].keys.data_ptr()
    for stay in ([0, 2, 4], [1, 2], [0, 1], [1]):
        order = torch.tensor(places_kept(stay))
        keep(roomy, order)
        plain.reorder_cache(order)
        assert torch.equal(shown(roomy), shown(plain))
        for cache in (plain, roomy):
            cache.update(*states(len(stay), 1, seed=len(stay)), 0)
        assert torch.equal(shown(roomy), shown(plain))
    assert roomy.layers[0].keys.data_ptr() == before


@pytest.mark.parametrize(
    ("stay", "places"), [([], []), ([0, 1], [0, 1]), ([3], [3]), ([1, 4, 5], [4, 1, 5]), ([0, 2, 3, 5], [0, 5, 2, 3])]
)
def test_rows_that_can_keep_their_places(stay, places):
    assert places_kept(stay) == places
    assert sorted(places) == stay
    assert all(row == place for place, row in enumerate(places) if place in stay)


def test_branches_are_apart():
    cache = cache_of(2, 4)
    before = shown(cache).clone()
    first, second = (
        branched(cache, torch.tensor([1, 0, 1])),
        branched(branched(cache, torch.arange(2)), torch.tensor([1])),
    )
    assert torch.equal(shown(first), before[:, [1, 0, 1]])
    first.update(*states(3, 1), 0)
    keep(first, torch.tensor([0]))
    first.layers[0].keys.zero_()
    assert torch.equal(shown(cache), before)
    assert torch.equal(shown(second), before[:, [1]])


@pytest.mark.parametrize("change", ["crop", "reorder", "repeat", "select"])
def test_what_transformers_does_to_a_cache(change):
    plain, roomy = cache_of(3, 4), branched(cache_of(3, 4), torch.arange(3))
    for cache in (plain, roomy):
        if change == "crop":
            cache.crop(-2)
        elif change == "reorder":
            cache.reorder_cache(torch.tensor([2, 2, 0]))
        elif change == "repeat":
            cache.batch_repeat_interleave(2)
        else:
            cache.batch_select_indices(torch.tensor([2]))
        cache.update(*states(len(cache.layers[0].keys), 1, seed=7), 0)
    assert torch.equal(shown(roomy), shown(plain))


def test_caches_are_joined_on_the_right():
    first, second = branched(cache_of(2, 5), torch.arange(2)), cache_of(1, 3, seed=1)
    expected = torch.cat([shown(first)[:, :, :, 1:], torch.nn.functional.pad(shown(second), (0, 0, 1, 0))], dim=1)
    together = joined(first, second, (4, 3))
    assert torch.equal(shown(together), expected)
    assert isinstance(together.layers[0], RoomyLayer)
    assert together.get_seq_length() == 4


@pytest.mark.parametrize(
    ("columns", "widths"), [((5, 3), (5, 3)), ((2, 3), (2, 3)), ((9, 2), (7, 2)), ((9, 8), (8, 8))]
)
def test_windows_are_joined(columns, widths):
    """A window holds the last columns of the whole, however much of it either part had."""
    window, width = 4, max(widths)
    parts = [states(2, number, seed=number)[0] for number in columns]
    whole = torch.cat([
        torch.nn.functional.pad(part[:, :, number - own :], (0, 0, width - own, 0))
        for part, number, own in zip(parts, columns, widths, strict=True)
    ])  # fmt: skip
    first, second = (cache_of(2, number, seed=number, window=window) for number in columns)
    layer = joined(first, second, widths).layers[0]
    assert layer.get_seq_length() == width
    assert torch.equal(layer.keys, whole[:, :, max(width - window + 1, 0) :])
    assert layer.get_mask_sizes(1)[0] == layer.keys.shape[2] + 1


def test_recurrent_states_are_not_joined():
    cache = cache_of(1, 2)
    assert can_join(cache)
    assert can_join(branched(cache, torch.tensor([0])))
    assert can_join(cache_of(1, 2, window=4))
    cache.layers.append(LinearAttentionLayer())
    assert not can_join(cache)
