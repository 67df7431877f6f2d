"""The shortcut test's verdict and its figures, from scores and cosines that are given."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from mmemb_r1.evaluation.bootstrap import Interval, clustered_bootstrap
from mmemb_r1.evaluation.shortcut import INTERVENTIONS, LEAST_CLUSTERS, Trials, judge, summarise

NOTHING = Interval(0.0, -0.01, 0.01)


@pytest.mark.parametrize(
    ("cost", "cosine", "name"),
    [
        (Interval(0.30, 0.25, 0.35), 0.55, "reads"),
        (Interval(0.30, 0.25, 0.35), 0.97, "reads"),  # all vectors lie close together, and yet it finds other things
        (Interval(0.04, 0.01, 0.07), 0.55, "reads"),  # few queries need a thought
        (Interval(0.10, 0.01, 0.19), 0.90, "reads"),
        (Interval(0.09, 0.01, 0.17), 0.90, "undecided"),
        (Interval(0.30, -0.01, 0.60), 0.55, "undecided"),
        (NOTHING, 0.97, "ignores"),
        (NOTHING, 0.95, "ignores"),
        (NOTHING, 0.94, "undecided"),
        (Interval(0.01, 0.005, 0.02), 0.97, "ignores"),  # an effect that is there, and next to nothing
        (Interval(0.02, -0.02, 0.06), 0.97, "undecided"),
        (NOTHING, 0.30, "undecided"),
        (Interval(-0.20, -0.30, -0.10), 0.30, "undecided"),
    ],
)
def test_verdict(cost, cosine, name):
    assert judge(cost, cosine, clusters=100).name == name


@pytest.mark.parametrize(
    ("cost", "cosine", "clusters", "reason"),
    [
        (Interval(0.3, 0.25, 0.35), 0.5, 100, r"costs 30.0 points \[25.0, 35.0\], and the vectors' cosine is 0.50\.$"),
        (Interval(0.3, 0.25, 0.35), 0.5, LEAST_CLUSTERS - 1, "of 19 clusters of queries, too few to tell"),
        (NOTHING, 0.3, 100, "the vectors move, but what is found hardly changes"),
        (Interval(-0.2, -0.3, -0.1), 0.3, 100, "the rationales of other queries serve it better"),
        (Interval(0.03, 0.01, 0.05), 0.9, 100, "there is an effect, but a small one"),
        (Interval(0.05, -0.05, 0.15), 0.9, 100, "the interval is wide, take more queries"),
        (None, None, 0, "they are all the same"),
    ],
)
def test_reason(cost, cosine, clusters, reason):
    assert re.search(reason, judge(cost, cosine, clusters).reason)


def test_few_clusters_tell_nothing_however_clear_they_are():
    """The draws of a single cluster have no spread at all."""
    assert judge(Interval(1.0, 1.0, 1.0), 0.1, LEAST_CLUSTERS - 1).name == "undecided"
    assert judge(Interval(0.0, 0.0, 0.0), 1.0, LEAST_CLUSTERS - 1).name == "undecided"
    assert judge(Interval(1.0, 1.0, 1.0), 0.1, LEAST_CLUSTERS).name == "reads"


def trials(size=60, cost=0.5, cosine=0.4, tasks=("fact", "flag", "flag"), seed=0):
    """Own rationales always find the answer; swapped ones don't for a share of the queries."""
    rng = np.random.default_rng(seed)
    scores = {name: np.ones(size) for name in INTERVENTIONS}
    scores["swap"] = (rng.random(size) >= cost).astype(float)
    return Trials(
        task=np.array([tasks[row % len(tasks)] for row in range(size)], dtype=object),
        cluster=np.array([f"country {row // 2}" for row in range(size)], dtype=object),
        tokens=np.full(size, 5.0),
        own=np.ones(size),
        others=np.full(size, 0.2),
        scores=scores,
        cosines={name: np.full(size, cosine) for name in INTERVENTIONS},
    )


def test_figures_are_means_over_tasks_with_clustered_intervals():
    given = trials()
    found = summarise(given, num_samples=300, seed=1)
    cost = 1 - given.scores["swap"]
    expected = clustered_bootstrap(cost, given.cluster.tolist(), given.task.tolist(), num_samples=300, seed=1)
    assert found["interventions"]["swap"]["cost"] == pytest.approx(expected._asdict())
    by_task = [cost[given.task == name].mean() for name in ("fact", "flag")]
    assert found["interventions"]["swap"]["cost"]["mean"] == pytest.approx(np.mean(by_task))
    assert found["interventions"]["swap"]["score"]["mean"] == pytest.approx(1 - np.mean(by_task))
    assert (found["n"], found["score"]["mean"], found["mean_reasoning_tokens"]) == (60, 1, 5)
    assert found["interventions"]["swap"]["cosine"]["mean"] == pytest.approx(0.4)
    assert found["cosine_between_queries"] == pytest.approx(0.2)
    assert found["verdict"] == "reads"
    json.dumps(found, allow_nan=False)


def test_an_intervention_is_judged_by_the_queries_that_it_changes():
    given = trials(cost=0.0)
    changed = np.arange(60) < 30
    given.scores["swap"][:] = np.where(changed, 0.0, np.nan)
    given.cosines["swap"][:] = np.where(changed, 0.1, np.nan)
    given.scores["shuffle"][:] = np.nan
    found = summarise(given, num_samples=100)
    assert (found["interventions"]["swap"]["n"], found["interventions"]["swap"]["clusters"]) == (30, 15)
    assert found["interventions"]["swap"]["cost"]["mean"] == 1
    assert found["interventions"]["shuffle"] is None
    assert found["verdict"] == "undecided" and "15 clusters" in found["reason"]


def test_nothing_to_swap_is_no_verdict():
    given = trials()
    for values in (given.scores["swap"], given.cosines["swap"], given.others):
        values[:] = np.nan
    found = summarise(given, num_samples=100)
    assert (found["verdict"], found["cosine_between_queries"]) == ("undecided", None)
    json.dumps(found, allow_nan=False)


def test_some_tasks_alone():
    given = trials()
    alone, both = summarise(given, ["flag"], num_samples=100), summarise(given, num_samples=100)
    assert (alone["n"], both["n"]) == (40, 60)
    cost = 1 - given.scores["swap"][given.task == "flag"]
    assert alone["interventions"]["swap"]["cost"]["mean"] == pytest.approx(cost.mean())
    with pytest.raises(ValueError, match=r"no queries of the tasks \['none'\]"):
        summarise(given, ["none"])


def test_columns_of_other_lengths_are_refused():
    given = trials()
    with pytest.raises(ValueError, match=r"own has the shape \(3,\); expected one per query, \(60,\)"):
        Trials(given.task, given.cluster, given.tokens, np.ones(3), given.others, given.scores, given.cosines)
    with pytest.raises(ValueError, match=r"scores\['swap'\] has the shape"):
        Trials(given.task, given.cluster, given.tokens, given.own, given.others, {"swap": np.ones(2)}, given.cosines)
