from __future__ import annotations

import pytest

from mmemb_r1.training.base_trainer import EpochSampler


def order(epoch, seed=0, **options):
    arguments = {"data_source": range(12), "mini_repeat_count": 2, "batch_size": 3, "seed": seed, **options}
    return list(EpochSampler(**arguments, epoch=lambda: epoch))


def test_an_epochs_order_follows_from_its_number():
    assert order(3) == order(3)
    assert order(0) != order(1) and order(0) != order(0, seed=1)
    assert sorted(set(order(1))) == list(range(12))


def test_a_resumed_sampler_goes_on_with_the_right_epoch():
    epochs, numbers = iter(range(3)), range(12)
    sampler = EpochSampler(data_source=numbers, mini_repeat_count=1, batch_size=3, seed=0, epoch=lambda: next(epochs))
    assert [list(sampler) for _ in range(3)] == [order(number, mini_repeat_count=1) for number in range(3)]


@pytest.mark.parametrize("epoch", [0, 5])
def test_without_shuffling_the_order_is_the_tables(epoch):
    assert order(epoch, shuffle=False, mini_repeat_count=1) == list(range(12))
