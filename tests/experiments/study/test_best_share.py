from __future__ import annotations

import numpy as np
import pytest

from experiments.study.best_share import best_of, cross_fitted
from mmemb_r1.evaluation.invocation import SHARES, Answers, choice_scores


def answers(never, always, gate, entities=None):
    count = len(never)
    names = np.array([f"c{row}" for row in range(count)] if entities is None else entities)
    return Answers(np.array(["a"] * count), names, np.array(never), np.array(always), np.ones(count), np.array(gate))


def test_of_noise_nothing_is_left():
    """Of 21 points the best one is above the others on the queries that it is chosen on, and nowhere else."""
    gains, flattered = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        noise = answers(*rng.integers(0, 2, (2, 60)), rng.random(60))  # thinking is worth nothing
        gains.append(cross_fitted(noise, num_splits=2).scores.mean() - noise.always.mean())
        picked = choice_scores(noise, noise.thinks(noise.threshold(best_of(noise))))
        flattered.append(picked.mean() - noise.always.mean())
    assert np.mean(flattered) > 0.04
    assert abs(np.mean(gains)) < 0.02


def test_a_real_peak_is_found_on_others():
    """Thinking helps where the gate says so, and harms elsewhere."""
    gate = np.linspace(0, 1, 100)
    helps = gate >= 0.5
    found = cross_fitted(answers(~helps, helps, gate))
    assert found.scores.mean() > 0.9
    assert np.mean(found.shares) == pytest.approx(0.5, abs=0.1)
    assert len(found.shares) == 20 and set(found.shares) <= set(SHARES)


def test_no_query_is_judged_at_a_point_that_it_helped_to_choose():
    """The one country that would choose `all` for itself is judged by what the others choose."""
    never = np.array([1, 1, 1, 1, 0, 0])
    always = 1 - never
    entities = ["a", "b", "c", "d", "e", "e"]
    found = cross_fitted(answers(never, always, np.full(6, 0.5), entities))
    assert found.scores[4:].tolist() == [0, 0]  # its own choice would be right
    assert 0 < found.scores[:4].mean() < 1  # theirs is made with it, or without


def test_one_country_cannot_be_split():
    with pytest.raises(ValueError, match="all queries are about 'x': there is nothing to split; expected 2 or more"):
        cross_fitted(answers([0, 1], [1, 0], [0.1, 0.9], ["x", "x"]))
