from __future__ import annotations

import numpy as np
import pytest

from mmemb_r1.evaluation import RetrievalTask, scoring
from mmemb_r1.evaluation.metrics import per_query, ranks, unit_rows
from mmemb_r1.evaluation.scoring import ABSENT, score_queries
from mmemb_r1.evaluation.tasks import first_queries
from mmemb_r1.objective import TEMPERATURE

NUM_QUERIES, NUM_CANDIDATES, DIM = 17, 23, 8


def make_task(metric="hit@1", relevance=None, pools=None, num_queries=NUM_QUERIES, num_candidates=NUM_CANDIDATES):
    queries, candidates = [f"q{row}" for row in range(num_queries)], [f"c{row}" for row in range(num_candidates)]
    return RetrievalTask(
        name="made",
        metric=metric,
        groups={},
        query_ids=queries,
        queries=queries,
        candidate_ids=candidates,
        candidates=candidates,
        relevance=relevance or [{f"c{row % num_candidates}": 1.0} for row in range(num_queries)],
        pools=pools,
    )


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    sizes = ((NUM_QUERIES, DIM), (NUM_CANDIDATES, DIM))
    return tuple(rng.normal(size=size).astype(np.float32) for size in sizes)


@pytest.fixture
def graded():
    """Grades of one to four candidates for each query."""
    rng = np.random.default_rng(1)
    return [
        {f"c{column}": float(rng.integers(1, 4)) for column in rng.choice(NUM_CANDIDATES, rng.integers(1, 5), False)}
        for _ in range(NUM_QUERIES)
    ]


def cosines(queries, candidates):
    return unit_rows("queries", queries) @ unit_rows("candidates", candidates).T


def table(relevance):
    grades = np.zeros((NUM_QUERIES, NUM_CANDIDATES))
    for row, of_candidate in enumerate(relevance):
        for candidate, grade in of_candidate.items():
            grades[row, int(candidate[1:])] = grade
    return grades


def test_agrees_with_the_metrics_on_the_whole_matrix(vectors, graded):
    scores, grades = cosines(*vectors), table(graded)
    scored = score_queries(make_task("ndcg_linear@5", graded), *vectors)
    assert set(scored.metrics) >= {"ndcg_linear@5", "hit@1", "mrr", "map", "recall@5", "ndcg_exponential@5"}
    for name, values in scored.metrics.items():
        np.testing.assert_allclose(values, per_query(name, scores, grades, tolerance=1e-6), err_msg=name)
    np.testing.assert_array_equal(scored.rank, ranks(scores, grades > 0, tolerance=1e-6))


def test_margin_and_target_probability_against_all_that_are_not_relevant(vectors, graded):
    scores, grades = cosines(*vectors).astype(float), table(graded)
    scored = score_queries(make_task("ndcg_linear@5", graded), *vectors)
    for row in range(NUM_QUERIES):
        best, others = scores[row][grades[row] > 0].max(), scores[row][grades[row] == 0]
        assert scored.margin[row] == pytest.approx(best - others.max(), abs=1e-6)
        logits = np.array([best, *others]) / TEMPERATURE
        assert scored.target_probability[row] == pytest.approx(1 / np.exp(logits - logits[0]).sum(), rel=1e-4)


@pytest.mark.parametrize("metric", ["hit@1", "ndcg_linear@5"])
@pytest.mark.parametrize("at_once", [1, 40, 100])
def test_parts_are_the_whole(metric, at_once, vectors, graded, monkeypatch):
    task = make_task(metric, graded)
    whole = score_queries(task, *vectors)
    monkeypatch.setattr(scoring, "SCORES_AT_ONCE", at_once)
    parts = score_queries(task, *vectors)
    for name, values in whole.metrics.items():
        np.testing.assert_allclose(parts.metrics[name], values)
    np.testing.assert_array_equal(parts.rank, whole.rank)
    np.testing.assert_allclose(parts.target_probability, whole.target_probability, rtol=1e-4)


def test_pools_of_all_candidates_in_any_order_are_no_pools(vectors, graded):
    orders = [np.random.default_rng(row).permutation(NUM_CANDIDATES) for row in range(NUM_QUERIES)]
    pools = [[f"c{column}" for column in order] for order in orders]
    plain = score_queries(make_task("ndcg_linear@5", graded), *vectors)
    pooled = score_queries(make_task("ndcg_linear@5", graded, pools), *vectors)
    for name, values in plain.metrics.items():
        np.testing.assert_allclose(pooled.metrics[name], values)
    np.testing.assert_allclose(pooled.margin, plain.margin, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 50, 10_000])
def test_a_query_competes_in_its_own_pool(at_once, vectors, graded, monkeypatch):
    monkeypatch.setattr(scoring, "SCORES_AT_ONCE", at_once)
    rng, scores, grades = np.random.default_rng(2), cosines(*vectors), table(graded)
    pools = []
    for row in range(NUM_QUERIES):  # of 1 to 8 candidates beside the relevant ones
        others = rng.choice(np.flatnonzero(grades[row] == 0), rng.integers(1, 9), replace=False)
        pools.append(rng.permutation([*np.flatnonzero(grades[row] > 0), *others]))
    task = make_task("ndcg_linear@5", graded, [[f"c{column}" for column in pool] for pool in pools])
    scored = score_queries(task, *vectors)
    own = [scores[row][pool] for row, pool in enumerate(pools)]
    own_grades = [grades[row][pool] for row, pool in enumerate(pools)]
    for name, values in scored.metrics.items():
        np.testing.assert_allclose(values, per_query(name, own, own_grades, tolerance=1e-6), err_msg=name)
    for row in range(NUM_QUERIES):
        others = own[row][own_grades[row] == 0]
        assert scored.margin[row] == pytest.approx(own[row][own_grades[row] > 0].max() - others.max(), abs=1e-6)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("metric", ["hit@1", "ndcg_linear@5"])
def test_a_collapsed_encoder_scores_at_the_floor(metric, pooled):
    same = np.random.default_rng(3).normal(size=DIM).astype(np.float32)
    # the truth stands first, as in MMEB: `argsort` would find it there
    pools = (
        [[f"c{row}", *(f"c{other}" for other in range(15) if other != row)] for row in range(5)] if pooled else None
    )
    task = make_task(metric, pools=pools, num_queries=5, num_candidates=15)
    scored = score_queries(task, np.tile(same, (5, 1)), np.tile(2 * same, (15, 1)))
    assert scored.metrics[metric].tolist() == [0.0] * 5
    assert scored.rank.tolist() == [15] * 5
    np.testing.assert_allclose(scored.margin, 0, atol=1e-6)
    np.testing.assert_allclose(scored.target_probability, 1 / 15, rtol=1e-4)


def test_without_other_candidates_there_is_no_margin(vectors):
    queries, candidates = vectors[0][:1], vectors[1][:2]
    scored = score_queries(make_task("map", [{"c0": 1, "c1": 2}], None, 1, 2), queries, candidates)
    assert np.isnan(scored.margin).all()
    assert scored.target_probability.tolist() == [1.0]
    assert scored.metrics["map"].tolist() == [1.0]


def test_what_fills_up_pools_is_below_any_cosine(vectors):
    """A query whose candidates are all opposite to it."""
    query, candidates = np.ones((1, DIM), np.float32), -np.ones((3, DIM), np.float32)
    task = make_task(
        relevance=[{"c0": 1.0}] * 2, pools=[["c0", "c1"], ["c0", "c1", "c2"]], num_queries=2, num_candidates=3
    )
    scored = score_queries(task, np.repeat(query, 2, axis=0), candidates)
    assert scored.rank.tolist() == [2, 3]
    assert ABSENT < -1 - scoring.TIE_TOLERANCE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda queries, candidates: (queries[1:], candidates), "made: 16 query vectors for 17 inputs"),
        (lambda queries, candidates: (queries, candidates[:-2]), "made: 21 candidate vectors for 23 inputs"),
        (lambda queries, candidates: (0 * queries, candidates), "made: queries: vector 0 has the norm 0"),
        (lambda queries, candidates: (queries, candidates * np.nan), "made: candidates: vector 0 has the norm nan"),
        (lambda queries, candidates: (queries[:, :5], candidates), "queries have 5 dimensions, candidates 8"),
    ],
)
def test_refuses_vectors_that_do_not_fit(change, message, vectors):
    with pytest.raises(ValueError, match=message):
        score_queries(make_task(), *change(*vectors))


def test_the_first_queries_are_a_task_of_their_own():
    pools = [[f"c{row}", f"c{row + 1}"] for row in range(NUM_QUERIES)]
    first = first_queries(make_task(pools=pools), 3)
    assert list(first.query_ids) == list(first.queries) == ["q0", "q1", "q2"]
    assert list(first.candidate_ids) == list(first.candidates) == ["c0", "c1", "c2", "c3"]
    assert len(first_queries(make_task(), 3).candidate_ids) == NUM_CANDIDATES, "all compete for every query"
    assert first_queries(make_task(), 100).query_ids == make_task().query_ids
    with pytest.raises(ValueError, match="0 queries of each task"):
        first_queries(make_task(), 0)
