"""The shortcut test's figures, from scores and cosines that are given."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmemb_r1.evaluation.diagnose.verdict import INTERVENTIONS, ShortcutOutcomes, summarise_outcomes
from mmemb_r1.evaluation.statistics import clustered_bootstrap


def trials(size=60, cost=0.5, cosine=0.4, tasks=("fact", "flag", "flag"), seed=0):
    """Own rationales always find the answer; swapped ones don't for a share of the queries."""
    rng = np.random.default_rng(seed)
    scores = {name: np.ones(size) for name in INTERVENTIONS}
    scores["swap"] = (rng.random(size) >= cost).astype(float)
    return ShortcutOutcomes(
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
    found = summarise_outcomes(given, num_samples=300, seed=1)
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
    found = summarise_outcomes(given, num_samples=100)
    assert (found["interventions"]["swap"]["n"], found["interventions"]["swap"]["clusters"]) == (30, 15)
    assert found["interventions"]["swap"]["cost"]["mean"] == 1
    assert found["interventions"]["shuffle"] is None
    assert found["verdict"] == "undecided" and "15 clusters" in found["reason"]


def test_nothing_to_swap_is_no_verdict():
    given = trials()
    for values in (given.scores["swap"], given.cosines["swap"], given.others):
        values[:] = np.nan
    found = summarise_outcomes(given, num_samples=100)
    assert (found["verdict"], found["cosine_between_queries"]) == ("undecided", None)
    json.dumps(found, allow_nan=False)


def test_some_tasks_alone():
    given = trials()
    alone, both = summarise_outcomes(given, ["flag"], num_samples=100), summarise_outcomes(given, num_samples=100)
    assert (alone["n"], both["n"]) == (40, 60)
    cost = 1 - given.scores["swap"][given.task == "flag"]
    assert alone["interventions"]["swap"]["cost"]["mean"] == pytest.approx(cost.mean())
    with pytest.raises(ValueError, match=r"no queries of the tasks \['none'\]"):
        summarise_outcomes(given, ["none"])


def test_columns_of_other_lengths_are_refused():
    given = trials()
    with pytest.raises(ValueError, match=r"own has the shape \(3,\); expected one per query, \(60,\)"):
        ShortcutOutcomes(
            given.task, given.cluster, given.tokens, np.ones(3), given.others, given.scores, given.cosines
        )
    with pytest.raises(ValueError, match=r"scores\['swap'\] has the shape"):
        ShortcutOutcomes(
            given.task, given.cluster, given.tokens, given.own, given.others, {"swap": np.ones(2)}, given.cosines
        )
