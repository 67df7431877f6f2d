"""Metrics against the libraries that others report with: equal where ties are broken alike, and where they differ.

pytrec_eval and scikit-learn come with mteb, of the extra `eval`, which the extra `dev` has: nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytrec_eval
import sklearn.metrics as sklearn_metrics

from mmemb_r1.evaluation.metrics import per_query, per_query_of, ranks, score_run

NUM_CASES = 1000
CUTS = (1, 3, 5, 10)
NAN = float("nan")


class Cases(NamedTuple):
    """Queries with their own numbers of candidates: a row `(C_q,)` each, and the same by id."""

    scores: list[np.ndarray]
    grades: list[np.ndarray]
    run: dict[str, dict[str, float]]
    qrels: dict[str, dict[str, int]]

    @property
    def pools(self) -> dict[str, list[str]]:
        return {query: list(of) for query, of in self.run.items()}


@pytest.fixture(scope="module", params=["without ties", "with ties"])
def cases(request: pytest.FixtureRequest) -> Cases:
    """
    1,000 random queries.

    trec tools rank the greater of two ids first if scores are equal; ids are such that this is the worst order.
    """
    rng = np.random.default_rng(0)
    made = Cases([], [], {}, {})
    for query in range(NUM_CASES):
        number = int(rng.integers(1, 41))
        scores = rng.integers(0, 6, number) if request.param == "with ties" else rng.permutation(number)
        grades = rng.integers(0, 4, number) * (rng.random(number) < rng.choice([0.1, 0.5, 1.0]))
        grades[rng.integers(number)] = rng.integers(1, 4)
        ids = [f"{9 - grade}-{rng.integers(10**6):06}-{index}" for index, grade in enumerate(grades)]
        made.scores.append(scores / 4)
        made.grades.append(grades)
        made.run[f"q{query}"] = dict(zip(ids, made.scores[-1].tolist(), strict=True))
        made.qrels[f"q{query}"] = dict(zip(ids, grades.tolist(), strict=True))
    return made


@pytest.fixture
def quick_scikit_learn() -> Iterator[None]:
    """Without its checks of arguments, which take longer than the metrics."""
    import sklearn

    with sklearn.config_context(skip_parameter_validation=True, assume_finite=True):
        yield


def trec(measure: str, run: Any, qrels: Any) -> dict[str, float]:
    """Per query."""
    found = pytrec_eval.RelevanceEvaluator(qrels, {measure}).evaluate(run)
    return {query: values[measure.replace(".", "_")] for query, values in found.items()}


OURS_IN_TREC = {
    "mrr": "recip_rank",
    "map": "map",
    "ndcg_linear": "ndcg",
    **{
        f"{ours}@{k}": f"{theirs}.{k}"
        for k in CUTS
        for ours, theirs in (
            ("hit", "success"),
            ("recall", "recall"),
            ("precision", "P"),
            ("map", "map_cut"),
            ("ndcg_linear", "ndcg_cut"),
        )
    },
}


def test_every_query_agrees_with_pytrec_eval(cases):
    ours = per_query_of(list(OURS_IN_TREC), cases.scores, cases.grades)
    for name, measure in OURS_IN_TREC.items():
        theirs = trec(measure, cases.run, cases.qrels)
        expected = [theirs[query] for query in cases.run]
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=1e-9, err_msg=name)


def test_the_exponential_gain_is_pytrec_eval_with_gains_for_grades(cases):
    gains = {query: {one: 2**grade - 1 for one, grade in grades.items()} for query, grades in cases.qrels.items()}
    theirs = trec("ndcg_cut.5", cases.run, gains)
    ours = per_query("ndcg_exponential@5", cases.scores, cases.grades)
    np.testing.assert_allclose(ours, [theirs[query] for query in cases.run], rtol=0, atol=1e-9)
    assert np.abs(ours - per_query("ndcg_linear@5", cases.scores, cases.grades)).max() > 0.1


def test_runs_by_id_agree_with_pytrec_eval(cases):
    ours = score_run("ndcg_linear@5", cases.run, cases.qrels, candidates=cases.pools)
    assert ours == pytest.approx(trec("ndcg_cut.5", cases.run, cases.qrels), abs=1e-9)


@pytest.mark.usefixtures("quick_scikit_learn")
@pytest.mark.parametrize("k", [None, 5])
def test_expected_ndcg_agrees_with_scikit_learn(cases, k):
    """Which takes a mean over the orders of ties too. It refuses queries with a single candidate."""
    cut = "" if k is None else f"@{k}"
    linear, exponential = (
        per_query(f"ndcg_{gain}{cut}", cases.scores, cases.grades, ties="expected")
        for gain in ("linear", "exponential")
    )
    compared = 0
    for row, (score, grade) in enumerate(zip(cases.scores, cases.grades, strict=True)):
        if len(score) > 1:
            for ours, gain in ((linear[row], grade), (exponential[row], 2**grade - 1)):
                assert ours == pytest.approx(sklearn_metrics.ndcg_score([gain], [score], k=k), abs=1e-9)
            compared += 1
    assert compared > 0.95 * NUM_CASES


@pytest.mark.usefixtures("quick_scikit_learn")
def test_map_agrees_with_scikit_learn_but_for_ties(cases):
    ours = per_query("map", cases.scores, cases.grades)
    differ, with_ties = 0, any(len(set(score)) < len(score) for score in cases.scores)
    for value, score, grade in zip(ours, cases.scores, cases.grades, strict=True):
        label = grade > 0
        theirs = sklearn_metrics.average_precision_score(label, score)
        if len(set(score)) == len(score):
            assert theirs == pytest.approx(value, abs=1e-9)
        else:  # measured at the end of a tie, where all of its positives are found already
            assert theirs > value - 1e-9
            differ += theirs > value + 1e-9
        if label.sum() == 1:
            ranking = sklearn_metrics.label_ranking_average_precision_score([label], [score])
            assert ranking == pytest.approx(value, abs=1e-9)
    assert (differ > 100) == with_ties


@pytest.fixture(scope="module")
def retrieval_metrics() -> ModuleType:
    from mteb._evaluators import retrieval_metrics

    return retrieval_metrics


def test_means_agree_with_mteb(cases, retrieval_metrics):
    """It rounds all but the reciprocal rank to five digits."""
    theirs = retrieval_metrics.calculate_retrieval_scores(cases.run, cases.qrels, CUTS)
    kinds = {
        "hit": (theirs.hit_rate, "HitRate"),
        "recall": (theirs.recall, "Recall"),
        "precision": (theirs.precision, "P"),
        "mrr": (theirs.mrr, "MRR"),
        "map": (theirs.map, "MAP"),
        "ndcg_linear": (theirs.ndcg, "NDCG"),
    }
    ours = per_query_of([f"{kind}@{k}" for kind in kinds for k in CUTS], cases.scores, cases.grades)
    for kind, (means, name) in kinds.items():
        for k in CUTS:
            exactly = 1e-9 if kind == "mrr" else 0.51e-5
            assert ours[f"{kind}@{k}"].mean() == pytest.approx(means[f"{name}@{k}"], abs=exactly), (kind, k)
    assert len(theirs.all_scores) == NUM_CASES


# Where they are unsafe.


def test_a_sort_gives_a_collapsed_encoder_full_marks():
    """The image tasks of MMEB have the truth as candidate 0, and are ranked by an argsort."""
    collapsed, truth = np.full((100, 16), 0.8), np.zeros(100, dtype=int)
    assert (np.argsort(-collapsed, axis=1, kind="stable")[:, 0] == truth).mean() == 1.0
    one = np.eye(1, 16).repeat(100, axis=0)
    assert (ranks(collapsed, one) == 16).all()
    assert per_query("hit@1", collapsed, one).mean() == 0.0
    assert per_query("hit@1", collapsed, one, ties="expected").mean() == pytest.approx(1 / 16)
    # scikit-learn sorts the other way round, so there the last candidate has to be the truth
    assert sklearn_metrics.top_k_accuracy_score(truth + 15, collapsed, k=1, labels=np.arange(16)) == 1.0
    assert (ranks(collapsed, one[:, ::-1]) == 16).all()


def test_a_sort_gives_nan_full_marks():
    broken = np.full((100, 16), NAN)
    assert (np.argsort(-broken, axis=1, kind="stable")[:, 0] == 0).mean() == 1.0
    with pytest.raises(ValueError, match="query 0 and candidate 0 is nan"):
        ranks(broken, np.eye(1, 16).repeat(100, axis=0))
    with pytest.raises(ValueError, match="query 0 and candidate 0 is nan"):
        per_query("hit@1", broken, np.eye(1, 16).repeat(100, axis=0))


def test_pytrec_eval_ranks_nan():
    run, qrels = {"q": {"a": NAN, "b": NAN}}, {"q": {"b": 1}}
    assert trec("recip_rank", run, qrels) == {"q": 1.0}
    with pytest.raises(ValueError, match="query 'q' and candidate 'a' is nan"):
        score_run("mrr", run, qrels)


def test_pytrec_eval_leaves_missing_queries_out_of_the_mean():
    qrels = {"easy": {"a": 1}, "hard": {"b": 1}}
    whole = {query: {"a": 0.9, "b": 0.1} for query in qrels}
    part = {"easy": whole["easy"]}
    assert np.mean(list(trec("recip_rank", whole, qrels).values())) == 0.75
    assert np.mean(list(trec("recip_rank", part, qrels).values())) == 1.0
    with pytest.raises(ValueError, match="1 queries, expected 2; 'hard' is missing"):
        score_run("mrr", part, qrels)


def test_mteb_leaves_missing_queries_out_of_the_mean(retrieval_metrics):
    qrels = {"easy": {"a": 1}, "hard": {"b": 1}}
    part = {"easy": {"a": 0.9, "b": 0.1}}
    assert retrieval_metrics.calculate_retrieval_scores(part, qrels, (1,)).hit_rate["HitRate@1"] == 1.0
    with pytest.raises(ValueError, match="'hard' is missing"):
        score_run("hit@1", part, qrels)


def test_pytrec_eval_does_not_miss_candidates():
    qrels, whole = {"q": {"b": 1}}, {"q": {"a": 0.9, "b": 0.1, "c": 0.5}}
    part = {"q": {"b": 0.1}}
    assert (trec("recip_rank", whole, qrels), trec("recip_rank", part, qrels)) == ({"q": 1 / 3}, {"q": 1.0})
    with pytest.raises(ValueError, match="1 scores, expected 3; 'a' is missing"):
        score_run("mrr", part, qrels, candidates=["a", "b", "c"])


def test_pytrec_eval_breaks_ties_by_name():
    named = {name: trec("recip_rank", {"q": {name: 0.5, "m": 0.5}}, {"q": {name: 1}})["q"] for name in "az"}
    assert named == {"a": 0.5, "z": 1.0}
    ours = {name: score_run("mrr", {"q": {name: 0.5, "m": 0.5}}, {"q": {name: 1}})["q"] for name in "az"}
    assert ours == {"a": 0.5, "z": 0.5}


def test_pytrec_eval_rounds_scores_to_single_precision():
    run, qrels = {"q": {"a": 0.5 + 1e-12, "b": 0.5}}, {"q": {"a": 1}}
    assert trec("recip_rank", run, qrels) == {"q": 0.5}
    assert score_run("mrr", run, qrels) == {"q": 1.0}
    assert score_run("mrr", run, qrels, tolerance=1e-6) == {"q": 0.5}  # where one means that, it can be said


def test_pytrec_eval_gives_zero_where_nothing_is_relevant():
    run, qrels = {"q": {"a": 0.9, "b": 0.1}}, {"q": {"a": 0}}
    assert trec("map", run, qrels) == {"q": 0.0}
    with pytest.raises(ValueError, match="no relevant candidate"):
        score_run("map", run, qrels)
