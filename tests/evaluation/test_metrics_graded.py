from __future__ import annotations

import math
from itertools import permutations, product

import numpy as np
import pytest

from mmemb_r1.evaluation import metrics as graded
from mmemb_r1.evaluation.metrics import METRICS, per_query, per_query_of, ranks

NAMES = (
    *("hit@1", "hit@3", "recall@1", "recall@3", "recall@50", "precision@2", "precision@50", "mrr", "mrr@2"),
    *("map", "map@1", "map@3", "ndcg_linear", "ndcg_linear@1", "ndcg_linear@5", "ndcg_exponential@3"),
)


def plain(name, ranking):
    """The definitions, for one query whose grades are given from the top."""
    kind, _, cut = name.partition("@")
    k = int(cut) if cut else len(ranking)
    relevant = sum(grade > 0 for grade in ranking)
    hits = [rank for rank, grade in enumerate(ranking[:k], start=1) if grade > 0]
    if kind == "hit":
        return float(bool(hits))
    if kind == "recall":
        return len(hits) / relevant
    if kind == "precision":
        return len(hits) / k
    if kind == "mrr":
        return 1 / hits[0] if hits else 0.0
    if kind == "map":
        return sum(number / rank for number, rank in enumerate(hits, start=1)) / relevant

    def dcg(grades):
        gains = [grade if kind == "ndcg_linear" else 2**grade - 1 for grade in grades]
        return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))

    return dcg(ranking[:k]) / dcg(sorted(ranking, reverse=True)[:k])


def plain_groups(scores, grades, tolerance):
    """Grades from the top in groups of ties, each led by the best relevant candidate that is in none."""
    left = sorted(zip(scores, grades, strict=True), reverse=True)
    groups = []
    while left:
        best = next((score for score, grade in left if grade > 0), None)
        above = [[grade] for score, grade in left if best is None or score > best + tolerance]
        tied = [grade for score, grade in left if best is not None and best - tolerance <= score <= best + tolerance]
        groups += above + ([tied] if tied else [])
        left = left[len(above) + len(tied) :]
    return groups


def plain_value(name, scores, grades, tolerance=0.0, ties="pessimistic"):
    groups = plain_groups(scores, grades, tolerance)
    if ties == "pessimistic":
        return plain(name, [grade for group in groups for grade in sorted(group)])
    orders = product(*(list(permutations(group)) for group in groups))
    return np.mean([plain(name, [grade for group in order for grade in group]) for order in orders])


def draw(rng, most, levels=None):
    """Scores and grades of a query; scores are drawn from few `levels` or have no ties."""
    number = int(rng.integers(1, most + 1))
    scores = rng.permutation(number) if levels is None else rng.integers(0, levels, number)
    grades = rng.integers(0, 4, number) * (rng.random(number) < rng.choice([0.2, 0.9]))
    grades[rng.integers(number)] = rng.integers(1, 4)
    return scores / 8, grades.astype(float)


@pytest.mark.parametrize("tolerance", [0.0, 0.15, 0.3])
@pytest.mark.parametrize("ties", ["pessimistic", "expected"])
def test_few_candidates_agree_with_all_orders_of_their_ties(ties, tolerance):
    rng = np.random.default_rng(0)
    scores, grades = zip(*(draw(rng, 6, levels=1 + case % 4) for case in range(120)), strict=True)
    results = per_query_of(NAMES, scores, grades, tolerance=tolerance, ties=ties)
    for name in NAMES:
        by_hand = [plain_value(name, *case, tolerance, ties) for case in zip(scores, grades, strict=True)]
        np.testing.assert_allclose(results[name], by_hand, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("tolerance", [0.0, 0.2, 0.6])
@pytest.mark.parametrize("levels", [None, 3, 12])
def test_many_queries_agree_with_a_loop_over_them(levels, tolerance):
    rng = np.random.default_rng(1)
    scores, grades = zip(*(draw(rng, 60, levels) for _ in range(300)), strict=True)
    results = per_query_of(NAMES, scores, grades, tolerance=tolerance)
    for name in NAMES:
        by_hand = [plain_value(name, *case, tolerance) for case in zip(scores, grades, strict=True)]
        np.testing.assert_allclose(results[name], by_hand, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("ties", ["pessimistic", "expected"])
def test_a_query_does_not_depend_on_its_neighbours(ties, monkeypatch):
    rng = np.random.default_rng(2)
    scores, grades = zip(*(draw(rng, 30, levels=5) for _ in range(50)), strict=True)
    together = per_query_of(NAMES, scores, grades, ties=ties)
    for name in NAMES:
        alone = [per_query(name, [one], [grade], ties=ties)[0] for one, grade in zip(scores, grades, strict=True)]
        np.testing.assert_allclose(together[name], alone, rtol=1e-12)
    monkeypatch.setattr(graded, "_CELLS", 70)  # two queries or three at a time
    for name, values in per_query_of(NAMES, scores, grades, ties=ties).items():
        np.testing.assert_allclose(values, together[name], rtol=1e-12)


@pytest.mark.parametrize("ties", ["pessimistic", "expected"])
@pytest.mark.parametrize("tolerance", [0.0, 0.3])
def test_the_order_in_which_candidates_are_stored_is_no_matter(ties, tolerance):
    rng = np.random.default_rng(3)
    scores, grades = rng.integers(0, 5, (40, 15)) / 4, rng.integers(0, 3, (40, 15))
    grades[:, 0] = 1
    order = rng.permutation(15)
    stored, moved = (
        per_query_of(NAMES, scores[:, columns], grades[:, columns], tolerance=tolerance, ties=ties)
        for columns in (np.arange(15), order)
    )
    for name in NAMES:
        np.testing.assert_array_equal(stored[name], moved[name])


def test_a_table_and_rows_are_the_same():
    rng = np.random.default_rng(4)
    scores, grades = rng.normal(size=(20, 9)).astype(np.float32), rng.integers(0, 3, (20, 9))
    grades[:, 4] = 2
    table, rows = per_query("map", scores, grades), per_query("map", list(scores), grades.tolist())
    np.testing.assert_array_equal(table, rows)
    assert (table.shape, table.dtype) == ((20,), np.float64)


@pytest.mark.parametrize("name", NAMES)
def test_a_collapsed_encoder_scores_at_the_floor(name):
    rng = np.random.default_rng(5)
    grades = rng.integers(0, 4, (30, 12))
    grades[:, 0] = 3  # where a sort that keeps the order of ties would find it
    same = 0.7 + 1e-7 * rng.random((30, 12))
    worst = per_query(name, -grades, grades)
    np.testing.assert_array_equal(per_query(name, same, grades, tolerance=1e-6), worst)
    assert (worst < per_query(name, grades, grades)).any() or name in ("recall@50", "precision@50")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tolerance", [0.0, 0.1, 0.5])
def test_chance_is_between_the_worst_and_the_best_order(name, tolerance):
    rng = np.random.default_rng(6)
    scores, grades = zip(*(draw(rng, 40, levels=6) for _ in range(200)), strict=True)
    worst, mean = (
        per_query(name, scores, grades, tolerance=tolerance, ties=way) for way in ("pessimistic", "expected")
    )
    assert (worst <= mean + 1e-12).all()
    assert ((mean > -1e-12) & (mean < 1 + 1e-12)).all()


def test_a_collapsed_encoder_is_expected_to_score_at_chance():
    scores, one = np.zeros((1, 20)), np.eye(1, 20)
    harmonic = sum(1 / rank for rank in range(1, 21)) / 20
    expected = {"hit@5": 5 / 20, "recall@5": 5 / 20, "precision@5": 1 / 20, "mrr": harmonic, "map": harmonic}
    results = per_query_of(list(expected), scores, one, ties="expected")
    assert {name: values[0] for name, values in results.items()} == pytest.approx(expected)
    # of 3 relevant ones among 20 at least one in the first 5: 1 - C(17, 5) / C(20, 5)
    three = np.arange(20)[None] < 3
    hit = per_query("hit@5", scores, three, ties="expected")[0]
    assert hit == pytest.approx(1 - math.comb(17, 5) / math.comb(20, 5))


def test_a_large_group_of_ties_keeps_its_precision():
    scores, grades = np.zeros((1, 100_000)), np.zeros((1, 100_000))
    scores[0, :50_000], grades[0, -3:] = 1.0, 1  # half of the pool is above, half is tied with three relevant ones
    results = per_query_of(["mrr", "map", "hit@60000"], scores, grades, ties="expected")
    places = np.arange(1, 50_001)
    best = (
        3 * (50_000.0 - places) * (49_999.0 - places) / (50_000.0 * 49_999 * 49_998)
    )  # chance that j is the best one
    assert best.sum() == pytest.approx(1)
    assert results["mrr"][0] == pytest.approx((best / (50_000 + places)).sum(), rel=1e-9)
    precision = (1 + (places - 1) * 2 / 49_999) / (50_000 + places)
    assert results["map"][0] == pytest.approx(precision.mean(), rel=1e-9)
    assert results["hit@60000"][0] == pytest.approx(best[:10_000].sum(), rel=1e-9)


def test_the_best_order_scores_exactly_one():
    rng = np.random.default_rng(7)
    grades = rng.integers(0, 4, (50, 30))
    grades[:, 3] = 1
    without_ties = grades + rng.permuted(np.tile(np.arange(30) / 100, (50, 1)), axis=1)
    for name in ("hit@1", "mrr", "map", "recall@30", "ndcg_linear@5", "ndcg_exponential", "ndcg_linear"):
        assert per_query(name, without_ties, grades) == pytest.approx(1, abs=1e-14), name


@pytest.mark.parametrize("tolerance", [0.0, 0.4])
def test_metrics_of_the_best_positive_agree_with_its_rank(tolerance):
    rng = np.random.default_rng(8)
    scores, grades = zip(*(draw(rng, 25, levels=9) for _ in range(200)), strict=True)
    place = ranks(scores, grades, tolerance=tolerance)
    assert len(set(place.tolist())) > 5
    np.testing.assert_allclose(per_query("mrr", scores, grades, tolerance=tolerance), 1 / place)
    for k in (1, 4):
        np.testing.assert_array_equal(per_query(f"hit@{k}", scores, grades, tolerance=tolerance), place <= k)


def test_a_tie_does_not_run_along_a_chain_of_neighbours():
    scores = np.arange(100)[None] * 0.9e-6  # no two neighbours differ by more than the tolerance
    best, worst = np.eye(1, 100, 99), np.eye(1, 100, 0)
    assert per_query("mrr", scores, best, tolerance=1e-6).tolist() == [1 / 2]
    assert per_query("mrr", scores, worst, tolerance=1e-6).tolist() == [1 / 100]
    both = per_query("map", scores, best + worst, tolerance=1e-6)
    assert both == pytest.approx((1 / 2 + 2 / 100) / 2)


def test_grades_count_in_ndcg_alone():
    rng = np.random.default_rng(9)
    scores, grades = rng.normal(size=(30, 10)), rng.integers(0, 4, (30, 10))
    grades[:, 0] = 3
    graded, binary = (per_query_of(NAMES, scores, values) for values in (grades, grades > 0))
    for name in NAMES:
        same = np.array_equal(graded[name], binary[name])
        assert same == (not name.startswith("ndcg")), name


def test_equal_grades_make_both_gains_the_same():
    scores, grades = [[0.4, 0.3, 0.2, 0.1]], [[0, 3, 0, 3]]
    linear = per_query("ndcg_linear@3", scores, grades)
    assert linear == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert per_query("ndcg_exponential@3", scores, grades) == pytest.approx(linear)


def test_the_ideal_looks_at_all_relevant_candidates_up_to_k():
    scores, grades = [[0.9, 0.8, 0.7]], [[1, 0, 5]]
    assert per_query("ndcg_linear@1", scores, grades).tolist() == [1 / 5]
    assert per_query("ndcg_exponential@1", scores, grades) == pytest.approx(1 / 31)


def test_map_is_divided_by_all_relevant_candidates():
    scores, grades = [[0.9, 0.8, 0.7, 0.6]], [[1, 0, 1, 1]]
    assert per_query("map@2", scores, grades).tolist() == [1 / 3]


def test_tiny_grades_are_grades():
    assert per_query("ndcg_exponential@2", [[0.9, 0.8]], [[1e-20, 2e-20]]) == pytest.approx(
        (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ndcg@5", "'ndcg@5' is not known; allowed: hit@k, recall@k"),
        ("hit", "'hit' is not known"),
        ("recall", "with k from 1"),
        ("hit@0", "'hit@0' is not known"),
        ("hit@-1", "'hit@-1' is not known"),
        ("hit@01", "'hit@01' is not known"),
        ("mrr@1.5", "not known"),
        ("mrr@", "mrr@k or mrr"),
    ],
)
def test_unknown_names_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        per_query(name, [[0.1]], [[1]])


def test_every_kind_is_tested_here():
    assert {name.partition("@")[0] for name in NAMES} == set(METRICS)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("scores", "relevance", "message"),
    [
        ([[0.1, 0.2], [0.1, NAN]], [[1, 0], [1, 0]], "score of query 1 and candidate 1 is nan"),
        ([[0.1, INF]], [[1, 0]], "candidate 1 is inf; it has to be finite"),
        ([[0.1], [0.1, -INF]], [[1], [1, 0]], "query 1 and candidate 1 is -inf"),
        ([[0.1, 0.2]], [[1, NAN]], "grade of query 0 and candidate 1 is nan"),
        ([[0.1, 0.2]], [[1, -1]], "is -1.0; it has to be finite and at least 0"),
        ([[0.1, 0.2], [0.1]], [[1, 0], [0]], "query 1 has no relevant candidate"),
        ([[0.1, 0.2]], [[1, 0], [1, 0]], "given for 2 queries; expected as many as there are scores of, 1"),
        ([[0.1, 0.2]], [[1]], "query 0 is given for 1 candidates; expected as many as there are scores, 2"),
        ([[0.1, 0.2], [0.3]], [[1, 0], [1, 0]], "query 1 is given for 2 candidates"),
        ([], [], r"scores: the shape is \(0,\)"),
        ([[]], [[]], "scores of query 0: .* at least one candidate"),
        ([0.1], [1], r"scores of query 0: the shape is \(\)"),
        (np.zeros(3), np.ones(3), r"the shape is \(3,\)"),
        (np.zeros((2, 0)), np.ones((2, 0)), r"the shape is \(2, 0\)"),
        (np.zeros((1, 2, 2)), np.ones((1, 2, 2)), "at least one of each"),
    ],
)
def test_bad_input_is_refused(scores, relevance, message):
    with pytest.raises(ValueError, match=message):
        per_query("hit@1", scores, relevance)


def test_a_refusal_names_the_query_whatever_is_worked_on_at_a_time(monkeypatch):
    monkeypatch.setattr(graded, "_CELLS", 4)
    scores, relevance = np.zeros((9, 2)), np.ones((9, 2))
    scores[7, 1] = NAN
    with pytest.raises(ValueError, match="query 7 and candidate 1"):
        per_query("hit@1", scores, relevance)
    scores[7, 1], relevance[5] = 0, 0
    with pytest.raises(ValueError, match="query 5 has no relevant"):
        per_query("hit@1", scores, relevance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ties": "optimistic"}, "ties='optimistic'; allowed: 'pessimistic', 'expected'"),
        ({"tolerance": -1e-6}, "tolerance is -1e-06; allowed"),
        ({"tolerance": NAN}, "tolerance is nan"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        per_query("hit@1", [[0.1]], [[1]], **options)


def test_grades_that_overflow_are_refused():
    assert per_query("ndcg_exponential@1", [[0.1, 0.2]], [[1000, 999]]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="a grade is 1001; .* takes grades up to 1000"):
        per_query("ndcg_exponential@1", [[0.1]], [[1001]])
