from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mmemb_r1.evaluation.invocation import (
    Answers,
    auc,
    choice_scores,
    efficient,
    gate_quality,
    invocation_by_gain,
    invocation_curve,
    judge_choice,
    least_tokens,
    oracle,
)
from mmemb_r1.evaluation.statistics import clustered_bootstrap


def drawn(queries=600, seed=0, **columns):
    """Two tasks of unlike size, 40 clusters, a gate that knows a little."""
    rng = np.random.default_rng(seed)
    pays = rng.random(queries)
    return Answers(
        **{
            "task": np.where(np.arange(queries) < queries // 4, "small", "large"),
            "cluster": rng.integers(0, 40, queries).astype(str),
            "never": (rng.random(queries) < 0.5).astype(float),
            "always": (rng.random(queries) < 0.3 + 0.6 * pays).astype(float),
            "tokens": rng.integers(1, 30, queries),
            "gate_prob": np.round((pays + rng.random(queries)) / 2, 2),
            "seconds_never": np.full(queries, 0.01),
            "seconds_always": np.where(np.arange(queries) < queries // 4, 0.02, 0.05),
            "target_probability_never": rng.random(queries),
            "target_probability_always": rng.random(queries),
        }
        | columns
    )


def over_tasks(answers, values):
    return np.mean([values[answers.task == task].mean() for task in ("small", "large")])


class TestChoice:
    def test_the_numbers_of_four_queries(self):
        answers = Answers(
            task=np.array(["a", "a", "a", "b"]),
            cluster=np.array(["w", "x", "y", "z"]),
            never=np.array([1.0, 0.0, 0.0, 0.0]),
            always=np.array([0.0, 1.0, 0.0, 1.0]),
            tokens=np.array([10, 20, 30, 4]),
        )
        choice = judge_choice(answers, np.array([False, True, True, False]))
        assert (choice.never.mean, choice.always.mean) == pytest.approx((1 / 6, 2 / 3))
        assert (choice.auto.mean, choice.oracle.mean) == pytest.approx((1 / 3, 5 / 6))
        assert (choice.invocation.mean, choice.better_fixed) == (pytest.approx(1 / 3), "always")
        assert choice.random.mean == pytest.approx(1 / 3 * 2 / 3 + 2 / 3 * 1 / 6)
        assert choice.over_random.mean == pytest.approx(0)
        assert (choice.gain.mean, choice.headroom.mean) == pytest.approx((-1 / 3, 1 / 6))
        assert choice.captured.mean == pytest.approx(-2)
        assert (choice.tokens.mean, choice.tokens_always.mean) == pytest.approx((25 / 3, 12))
        assert choice.queries == 4

    def test_the_oracle_captures_everything_and_a_fixed_mode_nothing(self):
        answers = drawn()
        best = judge_choice(answers, answers.always > answers.never)
        assert best.auto == pytest.approx(best.oracle)
        assert best.captured == pytest.approx((1, 1, 1))
        fixed = judge_choice(answers, np.full(600, best.better_fixed == "always"))
        assert fixed.captured == pytest.approx((0, 0, 0))
        assert fixed.over_random == pytest.approx((0, 0, 0))  # a coin that always falls on one side is that mode

    def test_intervals_are_those_of_the_rows(self):
        answers = drawn()
        thinks = answers.thinks(0.5)
        choice = judge_choice(answers, thinks)
        auto = choice_scores(answers, thinks)
        clusters, tasks = answers.cluster.tolist(), answers.task.tolist()
        assert choice.auto == pytest.approx(clustered_bootstrap(auto, clusters, tasks))
        difference = auto - getattr(answers, choice.better_fixed)
        assert choice.gain == pytest.approx(clustered_bootstrap(difference, clusters, tasks))
        headroom = oracle(answers) - getattr(answers, choice.better_fixed)
        assert choice.headroom == pytest.approx(clustered_bootstrap(headroom, clusters, tasks))
        ratio = over_tasks(answers, thinks)
        mixed = ratio * answers.always + (1 - ratio) * answers.never
        assert choice.random == pytest.approx(clustered_bootstrap(mixed, clusters, tasks))
        assert choice.over_random == pytest.approx(clustered_bootstrap(auto - mixed, clusters, tasks))
        assert choice.captured.low < choice.captured.mean < choice.captured.high

    def test_without_head_room_there_is_nothing_to_capture(self):
        answers = drawn()
        worse = replace(answers, always=answers.never * 0)
        choice = judge_choice(worse, worse.thinks(0.5))
        assert (choice.headroom.mean, choice.captured, choice.better_fixed) == (0, None, "never")


class TestRandom:
    def test_is_the_mean_of_coins(self):
        answers, rng = drawn(), np.random.default_rng(5)
        choice = judge_choice(answers, answers.thinks(answers.threshold(0.3)))
        ratio = choice.invocation.mean
        thrown = [over_tasks(answers, choice_scores(answers, rng.random(600) < ratio)) for _ in range(2000)]
        assert choice.random.mean == pytest.approx(np.mean(thrown), abs=0.002)

    def test_ends_are_the_fixed_modes(self):
        answers = drawn()
        choices = {share: judge_choice(answers, answers.thinks(answers.threshold(share))) for share in (0, 1)}
        assert choices[0].random == pytest.approx(choices[0].never)
        assert choices[1].random == pytest.approx(choices[1].always)


class TestCurve:
    def test_begins_with_never_and_ends_with_always(self):
        answers = drawn()
        curve = invocation_curve(answers)
        choice = judge_choice(answers, answers.thinks(0.5))
        assert (curve[0].threshold, curve[0].invocation, curve[0].tokens) == (np.inf, 0, 0)
        assert (curve[0].score, curve[-1].score) == (pytest.approx(choice.never), pytest.approx(choice.always))
        assert (curve[-1].share, curve[-1].invocation) == pytest.approx((1, 1))
        assert curve[-1].tokens == pytest.approx(choice.tokens_always.mean)
        assert (curve[0].seconds, curve[-1].seconds) == pytest.approx((0.01, 0.035))
        assert curve[0].over_random == pytest.approx((0, 0, 0))

    def test_every_point_is_what_its_threshold_gives(self):
        answers = drawn()
        curve = invocation_curve(answers, [0.1, 0.4, 0.9])
        for point in curve:
            thinks = answers.thinks(point.threshold)
            choice = judge_choice(answers, thinks)
            assert (point.score, point.random) == (pytest.approx(choice.auto), pytest.approx(choice.random))
            assert point.over_random == pytest.approx(choice.over_random)
            assert point.share == pytest.approx(thinks.mean())
            assert point.invocation == pytest.approx(choice.invocation.mean)
            assert point.tokens == pytest.approx(choice.tokens.mean)
            took = np.where(thinks, answers.seconds_always, answers.seconds_never)
            assert point.seconds == pytest.approx(over_tasks(answers, took))
        assert [point.threshold for point in curve] == sorted((point.threshold for point in curve), reverse=True)

    def test_equal_probabilities_think_together(self):
        answers = drawn(gate_prob=np.repeat([0.9, 0.5, 0.1], 200))
        assert [point.share for point in invocation_curve(answers, [0.01, 0.5, 1])] == pytest.approx([1 / 3, 2 / 3, 1])

    def test_times_are_left_out_if_not_known(self):
        assert {point.seconds for point in invocation_curve(drawn(seconds_always=None), [0, 0.5])} == {None}


class TestGateQuality:
    def test_auc_is_that_of_scikit_learn(self):
        rng = np.random.default_rng(0)
        for _ in range(50):
            number = int(rng.integers(4, 60))
            scores, positive = np.round(rng.random(number), 1), rng.random(number) < 0.5
            positive[:2] = True, False
            weights = rng.integers(0, 4, (3, number)).astype(float)
            weights[:, :2] = 1
            expected = [roc_auc_score(positive, scores, sample_weight=row) for row in weights]
            assert auc(scores, positive, weights) == pytest.approx(expected)
            assert auc(scores, positive) == pytest.approx([roc_auc_score(positive, scores)])

    def test_auc_of_one_sign_is_not_known(self):
        assert np.isnan(auc([0.1, 0.2], [True, True])).all()

    def test_small_and_unknown_gaps_do_not_count(self):
        quality = gate_quality(
            Answers(
                task=np.full(5, "a"),
                cluster=np.arange(5).astype(str),
                never=np.zeros(5),
                always=np.zeros(5),
                tokens=np.zeros(5),
                gate_prob=np.array([0.9, 0.8, 0.1, 0.2, 0.99]),
                target_probability_never=np.array([0.1, 0.2, 0.9, 0.5, 0.9]),
                target_probability_always=np.array([0.9, 0.3, 0.5, 0.55, np.nan]),
            ),
            least_gap=0.09,
        )
        assert (quality.queries, quality.share) == (3, 0.75)
        assert quality.auc.mean == 1

    def test_the_interval_covers_and_clusters_widen_it(self):
        rng = np.random.default_rng(1)
        gap = rng.normal(0, 0.5, 100)
        gate = 1 / (1 + np.exp(-2 * gap - rng.normal(size=100)))

        def quality(copies, clusters):
            columns = {name: np.zeros(100 * copies) for name in ("never", "always", "tokens")}
            return gate_quality(
                Answers(
                    task=np.full(100 * copies, "a"),
                    cluster=clusters,
                    gate_prob=np.tile(gate, copies),
                    target_probability_never=np.zeros(100 * copies),
                    target_probability_always=np.tile(gap, copies),
                    **columns,
                )
            ).auc

        once = quality(1, np.arange(100))
        assert once.low < once.mean < once.high
        assert quality(4, np.tile(np.arange(100), 4)) == pytest.approx(once)  # copies of a row tell nothing new
        alone = quality(4, np.arange(400))
        assert (once.high - once.low) / (alone.high - alone.low) == pytest.approx(2, rel=0.15)

    def test_nothing_is_said_without_target_probabilities_or_of_one_sign(self):
        assert gate_quality(drawn(target_probability_never=None)) is None
        assert gate_quality(drawn(target_probability_never=np.full(600, np.nan))) is None
        helped = drawn(target_probability_never=np.zeros(600), target_probability_always=np.ones(600))
        assert gate_quality(helped) == (None, 1.0, 600)


class TestEfficient:
    def test_is_what_no_other_point_beats(self):
        rng = np.random.default_rng(2)
        for _ in range(20):
            costs, scores = rng.integers(0, 6, 15), rng.integers(0, 6, 15)
            beaten = [
                any((c <= cost and s >= score) and (c < cost or s > score) for c, s in zip(costs, scores, strict=True))
                for cost, score in zip(costs, scores, strict=True)
            ]
            assert efficient(costs, scores).tolist() == [not one for one in beaten]


class TestErrors:
    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"never": np.zeros(3)}, r"never has the shape \(3,\); expected one per query, \(600,\)"),
            ({"always": np.full(600, np.nan)}, "always of query 0 is nan; it has to be finite"),
            ({"gate_prob": np.r_[np.zeros(599), np.nan]}, "gate_prob of query 599 is nan"),
        ],
    )
    def test_columns_have_to_fit(self, columns, message):
        with pytest.raises(ValueError, match=message):
            drawn(**columns)

    def test_no_queries(self):
        with pytest.raises(ValueError, match="there are no queries"):
            drawn().where(np.zeros(600, bool))

    @pytest.mark.parametrize("function", [invocation_curve, gate_quality, lambda answers: answers.thinks(0.5)])
    def test_without_a_gate(self, function):
        with pytest.raises(ValueError, match="no gate_prob: the model has no gate"):
            function(drawn(gate_prob=None))

    def test_numbers_out_of_range(self):
        with pytest.raises(ValueError, match="share=1.5; allowed: 0 to 1"):
            invocation_curve(drawn(), [1.5])
        with pytest.raises(ValueError, match="there are no shares"):
            invocation_curve(drawn(), [])
        with pytest.raises(ValueError, match=r"got scores \(2,\), signs \(3,\)"):
            auc([0.1, 0.2], [True, True, False])
        with pytest.raises(ValueError, match=r"got costs \(2,\) and scores \(3,\)"):
            efficient([1, 2], [1, 2, 3])


def test_think_rates_of_tasks_that_gain_much_and_little():
    """By hand: `even` gains nothing, `hurt` loses 0.5 (neither), `helped` gains 1; means over tasks, not queries."""
    answers = Answers(
        task=np.array(["even"] * 4 + ["also"] * 2 + ["hurt"] * 2 + ["helped"] * 2),
        cluster=np.arange(10).astype(str),
        never=np.array([1, 1, 0, 0, 1, 1, 1, 0, 0, 0]),
        always=np.array([1, 1, 0, 0, 1, 1, 0, 0, 1, 1]),
        tokens=np.full(10, 7),
    )
    thinks = np.array([1, 0, 0, 0, 1, 1, 1, 1, 1, 0]).astype(bool)
    assert invocation_by_gain(answers, thinks) == {"little": (0.25 + 1) / 2, "much": 0.5}
    assert invocation_by_gain(answers.where(answers.task == "hurt"), thinks[6:8]) == {"little": None, "much": None}


def test_least_tokens_that_reach_the_score_of_always():
    """By hand: two tasks; the gate ranks the query that gains third, and equal probabilities think together."""
    answers = Answers(
        task=np.array(["a", "a", "b", "b"]),
        cluster=np.arange(4).astype(str),
        never=np.array([0.0, 1.0, 1.0, 1.0]),
        always=np.ones(4),
        tokens=np.array([10, 20, 30, 40]),
        gate_prob=np.array([0.6, 0.7, 0.9, 0.1]),
    )
    assert least_tokens(answers) == pytest.approx(0.6)
    tied = replace(answers, gate_prob=np.array([0.6, 0.7, 0.9, 0.6]))
    assert least_tokens(tied) == pytest.approx(1.0)
    best = replace(answers, gate_prob=np.array([0.95, 0.7, 0.9, 0.1]))
    assert least_tokens(best) == pytest.approx(0.1)
    assert least_tokens(best, slack=1.0) == 0.0  # never is as good as that


def test_nothing_has_to_be_spent_where_always_is_worse():
    assert least_tokens(replace(drawn(), never=np.ones(600), always=np.zeros(600))) == 0.0
