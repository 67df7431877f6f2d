from __future__ import annotations

import numpy as np
import pytest

from mmemb_r1.training.gate import calibrated_threshold

PROBS = np.random.default_rng(0).random(997)
TOKENS = np.random.default_rng(1).integers(1, 60, size=997)


@pytest.mark.parametrize("target", [0.0, 0.013, 0.3, 0.5, 0.999])
def test_the_wanted_share_thinks(target):
    share = (calibrated_threshold(PROBS, target) <= PROBS).mean()
    assert target - 1 / len(PROBS) < share <= target


def test_all_think_where_all_may():
    assert calibrated_threshold(PROBS, 1.0) == 0.0


@pytest.mark.parametrize("target", [0.5, 5.0, 20.0])
def test_the_budget_is_spent_and_not_exceeded(target):
    thinks = calibrated_threshold(PROBS, target, TOKENS) <= PROBS
    spent = np.where(thinks, TOKENS, 0).mean()
    assert target - 60 / len(PROBS) < spent <= target


def test_equal_probabilities_think_together_or_not_at_all():
    probs = [0.9] * 3 + [0.5] * 4 + [0.1] * 3
    assert calibrated_threshold(probs, 0.5) == pytest.approx(0.7)
    assert calibrated_threshold(probs, 0.7) == pytest.approx(0.3)
    assert calibrated_threshold(probs, 0.2) == pytest.approx(0.95)


def test_a_gate_that_is_certain_of_too_many_is_an_error():
    with pytest.raises(ValueError, match=r"the gate is certain \(1\) of more inputs than may think"):
        calibrated_threshold([1.0, 1.0, 0.2], 0.5)
    assert calibrated_threshold([1.0, 1.0, 0.2], 0.7) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("probs", "costs"), [([], None), ([[0.1]], None), ([0.1], [1.0, 2.0])], ids=["empty", "matrix", "lengths"]
)
def test_shapes(probs, costs):
    with pytest.raises(ValueError, match=r"both have to be \(inputs,\)"):
        calibrated_threshold(probs, 0.5, costs)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"gate_probs": [float("nan")], "target": 0.5}, "probability"),
        ({"gate_probs": [0.5], "target": -1.0}, "target"),
        ({"gate_probs": [0.5], "target": 0.5, "costs": [-1.0]}, "cost"),
    ],
)
def test_numbers(given, name):
    with pytest.raises(ValueError, match=f"a {name} is negative or not finite"):
        calibrated_threshold(**given)
