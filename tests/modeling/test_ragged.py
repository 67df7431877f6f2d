"""Caches without padding hold, and attend to, what padded ones do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mmemb_r1.modeling.caching_mmemb_r1 import places_kept
from mmemb_r1.modeling.ragged_mmemb_r1 import RaggedCache, columns_for, ragged_attention

LAYERS, HEADS, GROUPS, WIDTH = 2, 2, 2, 4  # each head of keys and values serves two of queries


class Attention(nn.Module):
    """What transformers' functions of attention ask of a layer."""

    num_key_value_groups = GROUPS
    is_causal = True


class Twin:
    """A ragged cache and, row by row, the keys and values `(2, heads, length, WIDTH)` that it should hold."""

    def __init__(self, *lengths: int, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        longest = max(lengths) + 2
        cache = DynamicCache()
        for layer in range(LAYERS):
            cache.update(*self.states(len(lengths) + 1, longest), layer)
        rows = list(range(1, len(lengths) + 1))
        self.expected = [
            [torch.stack([one.keys[row], one.values[row]])[:, :, longest - length :] for one in cache.layers]
            for row, length in zip(rows, lengths, strict=True)
        ]
        self.ragged = RaggedCache.of(cache, rows, lengths)

    def states(self, rows: int, columns: int, heads: int = HEADS) -> list[Tensor]:
        return [torch.randn(rows, heads, columns, WIDTH, generator=self.random) for _ in range(2)]

    def step(self) -> None:
        """Feed a token per row, and compare what attention gives with that over each row alone."""
        order = self.ragged.begin_step(torch.device("cpu"))
        assert sorted(order.tolist()) == list(range(len(self.expected)))
        for layer in range(LAYERS):
            keys, values = self.states(len(order), 1)
            query = self.states(len(order), 1, HEADS * GROUPS)[0]
            got = ragged_attention(Attention(), query, *self.ragged.update(keys, values, layer), None)[0]
            for place, row in enumerate(order.tolist()):
                new = torch.stack([keys[place], values[place]])
                both = self.expected[row][layer] = torch.cat([self.expected[row][layer], new], dim=2)
                alone = sdpa_attention_forward(Attention(), query[place : place + 1], *both[:, None], None)[0]
                assert torch.allclose(got[place : place + 1], alone, atol=1e-6)

    def keep(self, stay: list[int]) -> None:
        order = places_kept(stay)
        self.ragged.keep(order)
        self.expected = [self.expected[row] for row in order]

    def join(self, other: Twin) -> None:
        self.ragged.join(other.ragged)
        self.expected += other.expected

    @property
    def slots(self) -> int:
        """Columns that are stored, of all rows and those that could come."""
        return sum(columns * buffer.shape[1] for columns, buffer in self.ragged.layers[0].buffers.items())


def test_rows_of_different_lengths_are_attended_to_as_if_alone():
    twin = Twin(3, 40, 17, 41, 3)
    for _ in range(30):  # rows outgrow their buffers, at different steps
        twin.step()


def test_rows_leave_and_come():
    twin = Twin(5, 20, 33, 6, 21)
    for number, stay in enumerate(([0, 2, 4], [2], [0, 1, 2], [1, 3], [0])):
        twin.step()
        twin.keep([row for row in stay if row < len(twin.expected)])
        twin.step()
        twin.join(Twin(4 + number, 19 + number, seed=number + 1))
        twin.step()
    twin.keep([])
    assert not twin.ragged.groups
    assert all(not layer.buffers for layer in twin.ragged.layers)


def test_little_room_is_wasted():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 250, (64,), generator=generator).tolist()
    twin = Twin(*lengths)
    assert twin.slots <= 1.4 * sum(lengths)
    twin.keep(list(range(10)))
    assert twin.slots <= 2.5 * sum(lengths[:10])


@pytest.mark.parametrize("length", [1, 8, 9, 16, 63, 64, 65, 1000])
def test_buffers_are_at_most_half_larger_than_rows(length):
    assert length <= columns_for(length) <= max(16, 1.5 * length)
    assert columns_for(columns_for(length)) == columns_for(length)


def test_other_caches_are_attended_to_as_by_sdpa():
    random = torch.Generator().manual_seed(0)
    query = torch.randn(2, HEADS * GROUPS, 5, WIDTH, generator=random)
    keys, values = (torch.randn(2, HEADS, 5, WIDTH, generator=random) for _ in range(2))
    expected = sdpa_attention_forward(Attention(), query, keys, values, None)[0]
    assert torch.equal(ragged_attention(Attention(), query, keys, values, None)[0], expected)


def test_a_cache_that_is_used_otherwise_says_so():
    twin = Twin(3, 4)
    with pytest.raises(RuntimeError, match="begin_step"):
        twin.ragged.update(*twin.states(2, 1), 0)
    twin.ragged.begin_step(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="one token per row"):
        twin.ragged.update(*twin.states(2, 2), 0)
    # attention that went past it, say another implementation, would have seen the new tokens alone
    twin.ragged.update(*twin.states(2, 1), 0)
    with pytest.raises(RuntimeError, match="not attended to"):
        twin.ragged.begin_step(torch.device("cpu"))
