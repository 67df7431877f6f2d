from __future__ import annotations

import numpy as np
import pytest

from mmemb_r1.evaluation.metrics import ranks, unit_rows


def test_ranks_count_the_better_candidates():
    scores = np.random.default_rng(0).permuted(np.tile(np.arange(50.0), (20, 1)), axis=1)
    right = np.eye(50)[np.arange(20)]
    # scores are 0 to 49 without ties, so a score says its own rank
    assert ranks(scores, right).tolist() == (50 - scores[np.arange(20), np.arange(20)]).astype(int).tolist()


def test_ranks_do_not_depend_on_the_order_of_candidates():
    rng = np.random.default_rng(1)
    scores, order = rng.integers(0, 5, (30, 12)).astype(float), rng.permutation(12)
    right = np.eye(12)[rng.integers(0, 12, 30)]
    assert (ranks(scores, right) == ranks(scores[:, order], right[:, order])).all()


@pytest.mark.parametrize("right", [0, 3, 9])
def test_a_collapsed_encoder_scores_at_the_floor(right):
    collapsed = unit_rows("vectors", np.tile(np.random.default_rng(2).normal(size=256), (10, 1)))
    assert (ranks(collapsed @ collapsed.T, np.eye(10)[np.full(10, right)], tolerance=1e-6) == 10).all()


def test_ties_within_the_tolerance_are_lost():
    assert ranks([[1.0, 1.0 - 1e-7]], [[1, 0]]).tolist() == [1]
    assert ranks([[1.0, 1.0 - 1e-7]], [[1, 0]], tolerance=1e-6).tolist() == [2]


def test_the_best_of_several_relevant_candidates_counts():
    relevance = np.array([[True, False, True, False], [False, True, True, False]])
    assert ranks([[0.1, 0.9, 0.8, 0.0], [0.9, 0.5, 0.5, 0.1]], relevance).tolist() == [2, 2]
    assert ranks([[0.9, 0.8, 0.7]], [[0, 1, 2]]).tolist() == [2]


def test_queries_may_have_their_own_candidates():
    rng = np.random.default_rng(5)
    scores = [rng.integers(-3, 3, number).astype(float) for number in (1, 7, 4, 9)]
    relevance = [np.arange(len(row)) == rng.integers(len(row)) for row in scores]
    alone = [ranks([row], [own])[0] for row, own in zip(scores, relevance, strict=True)]
    assert max(alone) > 3
    assert ranks(scores, relevance).tolist() == alone


@pytest.mark.parametrize(
    ("scores", "relevance", "message"),
    [
        ([[0.1, float("nan")]], [[1, 0]], "query 0 and candidate 1 is nan"),
        ([[0.1, float("inf")]], [[1, 0]], "has to be finite"),
        (np.zeros((1, 0)), [[1]], r"shape is \(1, 0\)"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "at least one of each"),
        (np.zeros(3), [[1]], r"shape is \(3,\)"),
        ([[0.1, 0.2]], [0], r"relevance of query 0: the shape is \(\)"),
        ([[0.1, 0.2]], [[False, False]], "query 0 has no relevant candidate"),
        ([[0.1, 0.2]], [[True, False], [True, False]], "relevance is given for 2 queries"),
        ([[0.1, 0.2]], [[True]], "expected as many as there are scores, 2"),
    ],
)
def test_ranks_refuses(scores, relevance, message):
    with pytest.raises(ValueError, match=message):
        ranks(scores, relevance)


def test_unit_rows_do_not_depend_on_length():
    vectors = np.random.default_rng(4).normal(size=(3, 7))
    rows = unit_rows("queries", vectors)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, unit_rows("queries", 3 * vectors), atol=1e-6)
    np.testing.assert_allclose((rows * rows).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[0.0, 0.0]], "queries: vector 0 has the norm 0"),
        ([[1.0, float("nan")]], "vector 0 has the norm nan"),
        ([1.0, 2.0], r"shape \(2,\)"),
    ],
)
def test_vectors_without_a_direction_are_refused(vectors, message):
    with pytest.raises(ValueError, match=message):
        unit_rows("queries", vectors)
