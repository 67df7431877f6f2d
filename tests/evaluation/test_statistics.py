from __future__ import annotations

import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest

from mmemb_r1.evaluation import statistics as bootstrap
from mmemb_r1.evaluation.statistics import bootstrap_means, cluster_draws, clustered_bootstrap, interval_of


def test_one_cluster_has_an_interval_of_no_width():
    mean, low, high = clustered_bootstrap([1.0, 0.0, 0.0, 1.0, 1.0], ["fr"] * 5)
    assert (mean, low, high) == pytest.approx((0.6, 0.6, 0.6))


def test_equal_values_have_an_interval_of_no_width():
    mean, low, high = clustered_bootstrap([0.25] * 12, [row % 5 for row in range(12)], [row % 2 for row in range(12)])
    assert (mean, low, high) == pytest.approx((0.25, 0.25, 0.25))


def test_agrees_with_the_normal_approximation_where_rows_are_independent():
    values = np.random.default_rng(0).normal(0.3, 1.0, size=400)
    interval = clustered_bootstrap(values, range(400), num_samples=20_000, level=0.9)
    half = NormalDist().inv_cdf(0.95) * values.std() / math.sqrt(400)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_agrees_with_all_draws_of_few_clusters():
    clusters, values, tasks = "aabbbc", [1.0, 0.0, 0.0, 1.0, 1.0, 0.5], "xyxyyx"
    means = []
    for drawn in product("abc", repeat=3):  # all 27 draws are equally likely
        # in one of them, ccc, the task y is not there: two of its own two clusters are drawn for it
        for instead in product("ab", repeat=2):
            by_task = []
            for task in "xy":
                rows = _rows_of(drawn, clusters, tasks, task) or _rows_of(instead, clusters, tasks, task)
                by_task.append(np.mean([values[row] for row in rows]))
            means.append(np.mean(by_task))
    interval = clustered_bootstrap(values, clusters, tasks, num_samples=100_000, level=0.5)
    # between two neighbouring means of the 27, whose share below is the quantile
    assert np.mean(np.array(means) < interval.low - 1e-9) <= 0.25 <= np.mean(np.array(means) <= interval.low + 1e-9)
    assert np.mean(np.array(means) < interval.high - 1e-9) <= 0.75 <= np.mean(np.array(means) <= interval.high + 1e-9)


def _rows_of(drawn, clusters, tasks, task):
    return [row for letter in drawn for row in range(len(tasks)) if clusters[row] == letter and tasks[row] == task]


def test_copies_of_a_row_tell_nothing_new():
    once = np.random.default_rng(1).normal(size=30)
    single = clustered_bootstrap(once, range(30))
    assert clustered_bootstrap(np.repeat(once, 4), np.repeat(range(30), 4)) == pytest.approx(single)
    as_if_independent = clustered_bootstrap(np.repeat(once, 4), range(120))
    assert (single.high - single.low) / (as_if_independent.high - as_if_independent.low) == pytest.approx(2, rel=0.1)


def test_seeds_go_along_with_their_queries():
    by_seed = np.random.default_rng(2).integers(0, 2, size=(3, 40))  # (seeds, queries)
    countries = np.arange(40) // 5
    averaged = clustered_bootstrap(by_seed.mean(axis=0), countries)
    assert clustered_bootstrap(by_seed.ravel(), np.tile(countries, 3)) == pytest.approx(averaged)


def test_every_task_counts_the_same_however_many_rows_it_has():
    values, tasks = [1.0] * 9 + [0.0], ["large"] * 9 + ["small"]
    interval = clustered_bootstrap(values, ["fr"] * 10, tasks)
    assert interval == pytest.approx((0.5, 0.5, 0.5))


def test_every_draw_is_of_every_task():
    """A large task and one of a single cluster: without it, a draw's mean would be that of the large one alone."""
    values, tasks = [0.0] * 100 + [1.0], ["large"] * 100 + ["small"]
    for own in ("its own", 0):  # a cluster that the large task has, too, and one that it hasn't
        _, draws = bootstrap_means(np.array(values)[:, None], [*range(100), own], tasks, num_samples=500)
        assert draws == pytest.approx(np.full((500, 1), 0.5))


def test_tasks_without_common_clusters_are_drawn_apart():
    """So the variance of the mean over tasks is that of the means of independent tasks."""
    rng = np.random.default_rng(6)
    values, tasks = rng.normal(size=120) * np.repeat([1, 5], [100, 20]), ["x"] * 100 + ["y"] * 20
    _, draws = bootstrap_means(values[:, None], range(120), tasks, num_samples=20_000)
    expected = (values[:100].var() / 100 + values[100:].var() / 20) / 4
    assert draws.var() == pytest.approx(expected, rel=0.03)


def test_what_tasks_have_in_common_widens_the_interval():
    """Twice the same queries: drawn together, two tasks tell no more than one does."""
    values = np.random.default_rng(7).normal(size=50)
    one = clustered_bootstrap(values, range(50))
    shared = clustered_bootstrap(np.tile(values, 2), [*range(50)] * 2, ["x"] * 50 + ["y"] * 50)
    assert shared == pytest.approx(one)
    apart = clustered_bootstrap(np.tile(values, 2), range(100), ["x"] * 50 + ["y"] * 50)
    assert (one.high - one.low) / (apart.high - apart.low) == pytest.approx(math.sqrt(2), rel=0.1)


def test_a_task_that_a_draw_lacks_keeps_its_own_spread():
    """Two of a hundred clusters: one draw in seven has neither."""
    clusters, tasks = [*range(100), 0, 1], ["large"] * 100 + ["small"] * 2
    values = np.array([0.0] * 100 + [2.0, 0.0])
    _, draws = bootstrap_means(values[:, None], clusters, tasks, num_samples=20_000)
    means = dict(zip(*np.unique(draws.round(6), return_counts=True), strict=True))
    assert min(means) == 0 and max(means) == 1, "half of the small task's mean"
    # both or neither of the two are seen as often as each other; the rest lies between
    assert means[0.0] == pytest.approx(means[1.0], rel=0.1)
    assert draws.mean() == pytest.approx(0.5, abs=0.02)


def test_strata_are_drawn_apart_and_in_parts(monkeypatch):
    strata = np.array([0, 1, 0, 2, 1, 1])
    whole = np.concatenate(list(cluster_draws(6, 30, strata=strata)))
    for stratum, size in enumerate((2, 3, 1)):
        assert (whole[:, strata == stratum].sum(axis=1) == size).all()
    assert whole.std(axis=0)[strata < 2].min() > 0
    monkeypatch.setattr(bootstrap, "_CELLS", 7 * 6)
    parts = list(cluster_draws(6, 30, strata=strata))
    assert [len(part) for part in parts] == [7, 7, 7, 7, 2]
    assert np.array_equal(np.concatenate(parts), whole)


def test_the_mean_of_a_difference_covers_at_its_level():
    rng = np.random.default_rng(3)
    covered = []
    for trial in range(200):
        countries = np.repeat(np.arange(50), 6)
        values = rng.normal(size=50)[countries] + rng.normal(size=300)  # what a country's queries have in common
        _, low, high = clustered_bootstrap(values, countries, num_samples=500, seed=trial)
        covered.append(low <= 0 <= high)
    assert 0.88 <= np.mean(covered) <= 0.99  # rows drawn one by one would cover two thirds


def test_depends_on_the_seed_and_on_nothing_else():
    values, clusters = np.random.default_rng(4).normal(size=20), np.arange(20) // 2
    assert clustered_bootstrap(values, clusters, seed=5) == clustered_bootstrap(values, clusters, seed=5)
    assert clustered_bootstrap(values, clusters, seed=5) != clustered_bootstrap(values, clusters, seed=6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([], []), {}, r"shape \(0,\)"),
        (([[1.0]], ["a"]), {}, r"shape \(1, 1\)"),
        (([1.0, float("nan")], ["a", "b"]), {}, "row 1 is nan"),
        (([1.0], ["a", "b"]), {}, "1 values, 2 clusters and 1 tasks"),
        (([1.0], ["a"], []), {}, "1 values, 1 clusters and 0 tasks"),
        (([1.0], ["a"]), {"num_samples": 0}, "num_samples=0"),
        (([1.0], ["a"]), {"level": 1.0}, "level=1.0"),
    ],
)
def test_refuses_what_has_no_interval(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        clustered_bootstrap(*arguments, **options)


def test_columns_share_their_draws():
    rng = np.random.default_rng(4)
    values, clusters, tasks = rng.random((60, 3)), rng.integers(0, 9, 60).tolist(), rng.integers(0, 4, 60).tolist()
    mean, draws = bootstrap_means(values, clusters, tasks, num_samples=500)
    for column in range(3):
        interval = clustered_bootstrap(values[:, column], clusters, tasks, num_samples=500)
        assert interval_of(mean[column], draws[:, column]) == pytest.approx(interval)
    difference = clustered_bootstrap(values[:, 0] - values[:, 1], clusters, tasks, num_samples=500)
    assert interval_of(mean[0] - mean[1], draws[:, 0] - draws[:, 1]) == pytest.approx(difference)


@pytest.mark.parametrize("clusters", [50, bootstrap._MANY])
def test_draws_do_not_depend_on_how_many_come_at_a_time(clusters, monkeypatch):
    whole = np.concatenate(list(cluster_draws(clusters, 30)))
    monkeypatch.setattr(bootstrap, "_CELLS", 7 * clusters)
    parts = list(cluster_draws(clusters, 30))
    assert [len(part) for part in parts] == [7, 7, 7, 7, 2]
    assert np.array_equal(np.concatenate(parts), whole)
    assert (whole.sum(axis=1) == clusters).all()


def test_many_clusters_are_drawn_as_few_are():
    values = np.random.default_rng(5).normal(size=bootstrap._MANY)
    interval = clustered_bootstrap(values, range(len(values)), num_samples=1000)
    half = NormalDist().inv_cdf(0.975) * values.std() / math.sqrt(len(values))
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_draws_that_could_not_be_computed_are_left_out():
    assert interval_of(1.0, np.array([np.nan, 1.0, 3.0]), level=0.5) == (1.0, 1.5, 2.5)
    with pytest.raises(ValueError, match="none of the 2 draws has a value"):
        interval_of(1.0, np.array([np.nan, np.nan]))
    with pytest.raises(ValueError, match="num_clusters=0"):
        next(cluster_draws(0))
