from __future__ import annotations

import numpy as np
import pytest

from mmemb_r1.evaluation.metrics import per_query, score_run

QRELS = {"q1": {"a": 2, "c": 1}, "q2": {"b": 1, "a": 0}}
RUN = {"q2": {"c": 0.1, "b": 0.2, "a": 0.3}, "q1": {"a": 0.9, "b": 0.8, "c": 0.7}}
NAN = float("nan")


def test_values_come_by_query_in_the_order_of_the_qrels():
    found = score_run("ndcg_linear@3", RUN, QRELS)
    assert list(found) == ["q1", "q2"]
    by_hand = per_query("ndcg_linear@3", [[0.9, 0.8, 0.7], [0.3, 0.2, 0.1]], [[2, 0, 1], [0, 1, 0]])
    assert list(found.values()) == by_hand.tolist()
    assert all(type(value) is float for value in found.values())


def test_ids_and_not_places_say_what_is_what():
    rng = np.random.default_rng(0)
    scores, grades = rng.normal(size=(30, 12)), rng.integers(0, 3, (30, 12))
    grades[:, 5] = 1
    run, qrels = {}, {}
    for query in rng.permutation(30):
        order = rng.permutation(12)
        run[f"q{query}"] = [(f"d{one}", scores[query, one]) for one in order]
        qrels[f"q{query}"] = {f"d{one}": grades[query, one] for one in order[::-1] if grades[query, one]}
    found = score_run("map", run, qrels)
    expected = per_query("map", scores, grades)
    assert found == pytest.approx({f"q{query}": expected[query] for query in range(30)})


@pytest.mark.parametrize("candidates", [None, ["c", "a", "b"], {"q1": ["b", "c", "a"], "q2": "abc"}])
def test_candidates_may_be_named(candidates):
    assert score_run("mrr", RUN, QRELS, candidates=candidates) == {"q1": 1.0, "q2": 0.5}


def test_queries_may_have_their_own_candidates():
    run = {"q1": {"a": 0.9, "b": 0.8}, "q2": {"c": 0.1, "b": 0.2, "d": 0.3}}
    pools = {"q1": ["a", "b"], "q2": ["b", "c", "d"]}
    assert score_run("mrr", run, {"q1": {"b": 1}, "q2": {"c": 1}}, candidates=pools) == {"q1": 0.5, "q2": 1 / 3}


def test_ties_are_treated_as_asked():
    run = {"q": {"a": 0.5, "b": 0.5 + 1e-7, "c": 0.5}}
    assert score_run("mrr", run, {"q": {"b": 1}}) == {"q": 1.0}
    assert score_run("mrr", run, {"q": {"b": 1}}, tolerance=1e-6) == {"q": 1 / 3}
    expected = score_run("hit@1", run, {"q": {"b": 1}}, tolerance=1e-6, ties="expected")
    assert expected == pytest.approx({"q": 1 / 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": {"q1": RUN["q1"]}}, "the run: 1 queries, expected 2; 'q2' is missing"),
        ({"run": {**RUN, "q3": RUN["q1"]}}, "the run: 3 queries, expected 2; 'q3' is not known"),
        ({"run": {}}, "the run: 0 queries"),
        ({"qrels": {}}, "the qrels hold no query"),
        ({"run": {**RUN, "q1": {"a": 0.9, "b": 0.8}}}, "query 'q1' of the run: 2 scores, expected 3; 'c' is missing"),
        ({"run": {**RUN, "q1": {**RUN["q1"], "d": 0}}}, "query 'q2' of the run: 3 scores, expected 4; 'd' is missing"),
        ({"candidates": ["a", "b"]}, "3 scores, expected 2; 'c' is not known"),
        ({"candidates": ["a", "b", "d"]}, "3 scores, expected 3; 'd' is missing and 'c' is not known"),
        ({"candidates": ["a", "b", "c", "b"]}, "the candidates: 'b' stands twice; ids have to be unique"),
        ({"candidates": {"q1": "abc", "q2": "abcc"}}, "the candidates of query 'q2': 'c' stands twice"),
        ({"candidates": {"q1": "abc"}}, "candidates: 1 queries, expected 2; 'q2' is missing"),
        ({"run": {**RUN, "q1": [*RUN["q1"].items(), ("a", 0.1)]}}, "scores of query 'q1': 'a' stands twice"),
        (
            {"run": {**RUN, "q2": {**RUN["q2"], "c": NAN}}},
            "score of query 'q2' and candidate 'c' is nan; allowed: finite",
        ),
        ({"run": {**RUN, "q2": {**RUN["q2"], "c": -float("inf")}}}, "candidate 'c' is -inf"),
        ({"run": {**RUN, "q2": {**RUN["q2"], "c": "0.5"}}}, "candidate 'c' is '0.5'; allowed: finite numbers"),
        ({"run": {**RUN, "q2": {**RUN["q2"], "c": None}}}, "candidate 'c' is None"),
        ({"qrels": {**QRELS, "q1": {"a": 1, "z": 0}}}, "query 'q1' judge 'z', which is none of its candidates"),
        ({"qrels": {**QRELS, "q1": {"a": 1, "b": -1}}}, "grade of query 'q1' and candidate 'b' is -1; .* from 0"),
        ({"qrels": {**QRELS, "q1": {"a": NAN}}}, "grade of query 'q1' and candidate 'a' is nan"),
        ({"qrels": {**QRELS, "q1": {"a": 0}}}, "query 'q1' of the qrels has no relevant candidate; leave it out"),
        ({"qrels": {**QRELS, "q1": {}}}, "no relevant candidate"),
        ({"metric": "ndcg@3"}, "'ndcg@3' is not known"),
        ({"ties": "best"}, "ties='best'"),
    ],
)
def test_what_is_missing_or_wrong_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        score_run(**{"metric": "mrr", "run": RUN, "qrels": QRELS, **change})
