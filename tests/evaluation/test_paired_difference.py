"""Paired comparisons: differences, p values, and their correction for the number of tasks."""

from __future__ import annotations

import numpy as np
import pytest

from mmemb_r1.evaluation.statistics import clustered_bootstrap, holm, paired_difference, two_sided_p


def hits(seed, size=120, rate=0.5):
    return (np.random.default_rng(seed).random(size) < rate).astype(float)


def countries(size=120, rows=4):
    return [f"country {row // rows}" for row in range(size)]


def test_the_difference_is_that_of_clustered_bootstrap_on_differences():
    a, b, tasks = hits(0), hits(1, rate=0.7), ["x", "y", "y"] * 40
    found = paired_difference(a, b, countries(), tasks, num_samples=500, seed=3)
    assert found.difference == clustered_bootstrap(b - a, countries(), tasks, num_samples=500, seed=3)
    assert found.b - found.a == pytest.approx(found.difference.mean)
    assert (found.n, found.clusters) == (120, 30)


def test_the_other_way_round_everything_is_mirrored():
    a, b = hits(0), hits(1, rate=0.7)
    one, other = paired_difference(a, b, countries()), paired_difference(b, a, countries())
    assert other.difference == pytest.approx((-one.difference.mean, -one.difference.high, -one.difference.low))
    assert (other.a, other.b, other.above, other.below, other.p) == (one.b, one.a, one.below, one.above, one.p)


def test_the_same_scores_do_not_differ():
    found = paired_difference(hits(0), hits(0), countries())
    assert found.difference == (0, 0, 0)
    assert (found.above, found.below, found.p) == (0, 0, 1)


def test_differences_that_cancel_are_on_neither_side():
    """Thirds of tasks with one, two and three rows don't add up to zero in floating point."""
    differences, tasks = np.array([0.1, 0.2, -0.3]), ["x", "y", "z"]
    found = paired_difference(np.zeros(3), differences, ["fr"] * 3, tasks)
    assert (found.above, found.below, found.p) == (0, 0, 1)


def test_pairing_tells_more_than_two_separate_intervals():
    """Two models that agree on nearly all queries: what they share is not noise of their difference."""
    a = hits(0, 400)
    b = a.copy()
    b[np.flatnonzero(a == 0)[:20]] = 1
    queries = list(range(400))
    found = paired_difference(a, b, queries)
    apart = [clustered_bootstrap(values, queries) for values in (a, b)]
    assert apart[0].high > apart[1].low
    assert found.difference.low > 0 and found.p < 0.01 and found.above == 1


def test_p_is_below_5_percent_where_the_interval_leaves_zero_out():
    for seed in range(60):
        found = paired_difference(hits(seed), hits(seed + 1000, rate=0.6), countries(rows=1), num_samples=999)
        outside = found.difference.low > 0 or found.difference.high < 0
        assert outside == (found.p < 0.05) or abs(found.p - 0.05) < 0.01


def test_false_alarms_come_at_their_rate():
    rng, alarms = np.random.default_rng(5), []
    clusters = np.repeat(np.arange(40), 5)
    for seed in range(200):
        shared = rng.normal(size=40)[clusters]  # what a cluster's rows have in common
        found = paired_difference(np.zeros(200), shared + rng.normal(size=200), clusters, num_samples=400, seed=seed)
        alarms.append(found.p < 0.05)
    assert 0.01 <= np.mean(alarms) <= 0.11


@pytest.mark.parametrize(
    ("draws", "p"),
    [
        ([1.0] * 9, 2 * (0 + 1) / 10),
        ([-1.0] * 9, 2 * (0 + 1) / 10),
        ([-1.0] + [1.0] * 98, 2 * (1 + 1) / 100),
        ([0.0] * 4 + [1.0] * 95, 2 * (4 + 1) / 100),
        ([-1.0, 1.0], 1.0),
    ],
)
def test_p_counts_the_rarer_side(draws, p):
    assert two_sided_p(np.array(draws)) == pytest.approx(p)


def test_holm():
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.5, 0.001, 0.9]) == pytest.approx([1.0, 0.003, 1.0])
    assert holm([0.2]) == [0.2]


def test_holm_rejects_what_its_definition_does():
    """The smallest p values are compared with alpha / m, alpha / (m - 1), ... up to the first that is too large."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.random(8) ** 4
        rejected = set()
        for place, index in enumerate(np.argsort(values)):
            if values[index] >= 0.05 / (8 - place):
                break
            rejected.add(int(index))
        assert {index for index, p in enumerate(holm(values)) if p < 0.05} == rejected
