"""Selection scored against what is known."""

from __future__ import annotations

import math

import pytest

from experiments.atlas_workers.quality import selection_quality


def test_counts():
    gain = [3.0, 2.0, 1.0, 0.5, -1.0, float("nan")]
    kept = [True, True, True, False, False, False]
    helpful = [True, True, False, True, False, True]
    quality = selection_quality(gain, kept, helpful)
    assert quality["rationales"] == 5, "what was not judged is left out"
    assert quality["precision"] == pytest.approx(2 / 3) and quality["recall"] == pytest.approx(2 / 3)
    assert quality["base_rate"] == pytest.approx(3 / 5)
    assert quality["average_precision"] == pytest.approx((1 / 1 + 2 / 2 + 3 / 4) / 3)
    assert quality["precision_at_recall"] == pytest.approx(3 / 4), "all three helpful ones are needed for 80 %"


def test_equal_gains_rank_nothing():
    quality = selection_quality([0.0] * 4, [True] * 4, [True, False, False, False])
    assert quality["precision"] == quality["average_precision"] == quality["base_rate"] == 0.25
    assert quality["recall"] == 1


def test_nothing_kept_has_no_precision():
    quality = selection_quality([0.1, 0.2], [False, False], [True, False])
    assert math.isnan(quality["precision"]) and quality["recall"] == 0


def test_errors():
    with pytest.raises(ValueError, match="got 1 gains, 2 marks of what was kept and 1 of what helps"):
        selection_quality([0.1], [True, False], [True])
    with pytest.raises(ValueError, match="of 2 rationales with a score, 2 help: both kinds are needed"):
        selection_quality([0.1, 0.2], [True, False], [True, True])
