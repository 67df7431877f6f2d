from __future__ import annotations

import numpy as np
import pytest

from mmemb_r1.evaluation.metrics import cosine_scores, hit_at_k, mrr, ranks


def test_ranks_count_the_better_candidates():
    scores = np.random.default_rng(0).permuted(np.tile(np.arange(50.0), (20, 1)), axis=1)
    positives = np.arange(20)
    # scores are 0 to 49 without ties, so a score says its own rank
    assert ranks(scores, positives).tolist() == (50 - scores[np.arange(20), positives]).astype(int).tolist()


def test_ranks_do_not_depend_on_the_order_of_candidates():
    rng = np.random.default_rng(1)
    scores, positives, order = rng.integers(0, 5, (30, 12)).astype(float), rng.integers(0, 12, 30), rng.permutation(12)
    assert (ranks(scores, positives) == ranks(scores[:, order], np.argsort(order)[positives])).all()


@pytest.mark.parametrize("positive", [0, 3, 9])
def test_a_collapsed_encoder_scores_at_the_floor(positive):
    collapsed = np.tile(np.random.default_rng(2).normal(size=256), (10, 1))
    place = ranks(cosine_scores(collapsed, collapsed), np.full(10, positive), tolerance=1e-6)
    assert hit_at_k(place) == 0.0
    assert mrr(place) == pytest.approx(1 / 10)


def test_ties_within_the_tolerance_are_lost():
    assert ranks([[1.0, 1.0 - 1e-7]], [0]).tolist() == [1]
    assert ranks([[1.0, 1.0 - 1e-7]], [0], tolerance=1e-6).tolist() == [2]


def test_the_best_of_several_positives_counts():
    positives = np.array([[True, False, True, False], [False, True, True, False]])
    assert ranks([[0.1, 0.9, 0.8, 0.0], [0.9, 0.5, 0.5, 0.1]], positives).tolist() == [2, 2]


def test_one_positive_as_index_and_as_mask_are_the_same():
    rng = np.random.default_rng(3)
    scores, positives = rng.normal(size=(8, 5)), rng.integers(0, 5, 8)
    assert (ranks(scores, positives) == ranks(scores, np.eye(5, dtype=bool)[positives])).all()


def test_queries_may_have_their_own_candidates():
    rng = np.random.default_rng(5)
    scores = [rng.integers(-3, 3, number).astype(float) for number in (1, 7, 4, 9)]
    positives = [rng.integers(len(row)) for row in scores]
    masks = [np.arange(len(row)) == positive for row, positive in zip(scores, positives, strict=True)]
    alone = [ranks([row], [positive])[0] for row, positive in zip(scores, positives, strict=True)]
    assert max(alone) > 3
    assert ranks(scores, positives).tolist() == ranks(scores, masks).tolist() == alone


@pytest.mark.parametrize(
    ("scores", "positives", "message"),
    [
        ([[0.1, float("nan")]], [0], "query 0 and candidate 1 is nan"),
        ([[0.1, float("inf")]], [0], "has to be finite"),
        (np.zeros((1, 0)), [0], r"shape is \(1, 0\)"),
        (np.zeros((0, 3)), np.zeros(0, int), "at least one of each"),
        (np.zeros(3), [0], r"shape is \(3,\)"),
        ([[0.1, 0.2]], [2], "positive of query 0 is 2; allowed: 0 to 1"),
        ([[0.1, 0.2]], [-1], "allowed: 0 to 1"),
        ([[0.1, 0.2]], [0, 1], "one index per query"),
        ([[0.1, 0.2]], [0.0], "integers"),
        ([[0.1, 0.2]], [[False, False]], "query 0 has no positive"),
        ([[0.1, 0.2], [0.1]], [0, 1], "positive of query 1 is 1; allowed: 0 to 0"),
        ([[0.1, 0.2]], [[1, 0]], "positives are int64 rows; allowed: rows of booleans, or one index"),
        ([[0.1, 0.2]], [[True, False], [True, False]], "mask of positives is given for 2 queries"),
        ([[0.1, 0.2]], [[True]], "expected as many as there are scores, 2"),
    ],
)
def test_ranks_refuses(scores, positives, message):
    with pytest.raises(ValueError, match=message):
        ranks(scores, positives)


def test_hit_and_mrr_in_closed_form():
    place = np.arange(1, 11)
    assert [hit_at_k(place, k) for k in (1, 5, 10)] == [0.1, 0.5, 1.0]
    assert mrr(place) == pytest.approx(sum(1 / rank for rank in range(1, 11)) / 10)


@pytest.mark.parametrize("metric", [hit_at_k, mrr])
def test_metrics_refuse_what_is_no_rank(metric):
    with pytest.raises(ValueError, match="at least one query"):
        metric([])
    with pytest.raises(ValueError, match="ranks start at 1"):
        metric([1, 0])
    with pytest.raises(ValueError, match="ranks start at 1"):
        metric([1, float("nan")])


def test_hit_at_k_refuses_k_below_one():
    with pytest.raises(ValueError, match="k is 0"):
        hit_at_k([1], 0)


def test_cosine_does_not_depend_on_length():
    rng = np.random.default_rng(4)
    queries, candidates = rng.normal(size=(3, 7)), rng.normal(size=(5, 7))
    scores = cosine_scores(queries, candidates)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, cosine_scores(3 * queries, 0.1 * candidates), atol=1e-6)
    np.testing.assert_allclose(np.diag(cosine_scores(queries, queries)), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ([[0.0, 0.0]], "vector 0 has the norm 0"),
        ([[1.0, float("nan")]], "vector 0 has the norm nan"),
        ([[1.0]], "1 dimensions, candidates 2"),
        ([1.0, 2.0], r"shape \(2,\)"),
    ],
)
def test_cosine_refuses(queries, message):
    with pytest.raises(ValueError, match=message):
        cosine_scores(queries, [[1.0, 0.0]])
