"""One probability of the target, in the orders of operations that its callers need."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmemb_r1.objective import TEMPERATURE, target_probability


@pytest.fixture(scope="module")
def scores():
    drawn = np.random.default_rng(0).uniform(-1, 1, (50, 9))
    drawn[::3, 4:] = -np.inf  # fewer candidates
    return drawn


def test_every_order_gives_the_same_probability(scores):
    targets = np.random.default_rng(1).integers(0, 4, 50)
    powers = np.exp(scores / TEMPERATURE)
    expected = powers[np.arange(50), targets] / powers.sum(axis=1)
    np.testing.assert_allclose(target_probability(scores, targets), expected, rtol=1e-9)
    tensors = torch.from_numpy(scores), torch.from_numpy(targets)
    for found in (
        target_probability(*tensors),
        target_probability(*tensors, log=True).exp(),
        target_probability(*tensors, log=True, fused=False).exp(),
        target_probability(tensors[0] / TEMPERATURE, tensors[1], temperature=1),
    ):
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_a_case_by_hand():
    queries, candidates = torch.eye(3)[:2], torch.eye(3)
    found = target_probability(queries @ candidates.T, torch.tensor([0, 2]), temperature=0.5)
    total = math.exp(2) + 2
    assert found.tolist() == pytest.approx([math.exp(2) / total, 1 / total])


def test_scores_are_left_as_they_are(scores):
    before = scores.copy()
    target_probability(scores, np.zeros(50, dtype=np.int64))
    np.testing.assert_array_equal(scores, before)


def test_only_the_logarithm_is_exact_where_the_probability_vanishes():
    scores, targets = torch.tensor([[-1.0, 1.0]]), torch.tensor([0])
    assert target_probability(scores, targets, temperature=0.005).item() == 0
    for fused in (True, False):
        found = target_probability(scores, targets, temperature=0.005, log=True, fused=fused)
        assert found.item() == pytest.approx(-400)


def test_gradients_reach_the_scores():
    scores = torch.tensor([[0.2, 0.1, -torch.inf]], requires_grad=True)
    target_probability(scores, torch.tensor([0]), temperature=1, log=True, fused=False).sum().backward()
    share = 1 / (1 + np.exp(-0.1))
    np.testing.assert_allclose(scores.grad[0], [1 - share, share - 1, 0], atol=1e-6)
