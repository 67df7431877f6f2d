"""Gains and posterior weights: closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from mmemb_r1.training.selection.gain import confidence, corrected_gain, marginal_gain, posterior


def test_gain_is_the_difference_of_confidences():
    with_, without = torch.tensor([1.2, -0.7, 3.0]), torch.tensor([0.3, 0.3, 3.0])
    expected = [1 / (1 + math.exp(-a)) - 1 / (1 + math.exp(-b)) for a, b in [(1.2, 0.3), (-0.7, 0.3), (3.0, 3.0)]]
    assert marginal_gain(with_, without).tolist() == pytest.approx(expected)
    assert marginal_gain(with_, without, "log-odds").tolist() == pytest.approx([0.9, -1.0, 0.0])


def test_log_odds_still_tell_apart_what_saturates():
    sure, surer = torch.tensor(20.0), torch.tensor(25.0)
    assert marginal_gain(surer, sure).item() == pytest.approx(0.0, abs=1e-6)
    assert marginal_gain(surer, sure, "log-odds").item() == 5.0


def test_what_helps_every_pair_alike_gains_nothing_after_the_wrong_pair_correction():
    gain = torch.tensor([0.4, 0.4])
    negatives = torch.tensor([[0.4, -0.1], [0.4, -0.3]])
    assert corrected_gain(gain, negatives).tolist() == pytest.approx([0.0, 0.4])
    assert corrected_gain(gain, negatives[:0]).tolist() == pytest.approx([0.4, 0.4])


def test_what_harms_every_pair_gets_no_credit_for_the_wrong_ones():
    gain, negatives = torch.tensor([-0.2]), torch.tensor([[-0.9], [-0.5]])
    assert corrected_gain(gain, negatives).tolist() == pytest.approx([-0.2])


def test_posterior_is_a_softmax_over_what_was_kept():
    gain = torch.tensor([0.30, 0.05, 0.10, -0.20, float("nan")])
    weights, kept = posterior(gain, margin=0.05, temperature=0.1)
    assert kept.tolist() == [True, False, True, False, False], "a gain has to be larger than the margin"
    assert weights.sum().item() == pytest.approx(1)
    assert (weights[0] / weights[2]).item() == pytest.approx(math.exp((0.30 - 0.10) / 0.1), rel=1e-5)
    assert weights[~kept].eq(0).all()


def test_nothing_kept_has_no_weight_and_infinite_temperature_is_uniform():
    weights, kept = posterior(torch.tensor([-0.1, 0.0]))
    assert not kept.any() and weights.tolist() == [0, 0]
    assert posterior(torch.tensor([0.1, 5.0]), temperature=math.inf)[0].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_has_to_be_positive(temperature):
    with pytest.raises(ValueError, match=r"temperature=.* has to be positive"):
        posterior(torch.tensor([0.1]), temperature=temperature)


def test_unknown_space_is_refused():
    with pytest.raises(ValueError, match=r"space='logits'; allowed: 'probability', 'log-odds'"):
        marginal_gain(torch.zeros(1), torch.zeros(1), "logits")


def test_confidence_is_a_probability():
    logit = torch.linspace(-5, 5, 11)
    assert (confidence(logit) + confidence(-logit)).tolist() == pytest.approx([1.0] * 11)
