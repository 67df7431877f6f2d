"""Stopping early changes what is asked, not what is kept."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
import torch
from tests.training.selection.conftest import FakeEvaluator, guessing, knowing

from mmemb_r1.training.selection.config import SelectionOptions
from mmemb_r1.training.selection.early_stop import EarlyStop
from mmemb_r1.training.selection.evaluator import Trial, TrialError
from mmemb_r1.training.selection.select import select_rationales

pytestmark = pytest.mark.usefixtures("no_picture")
OPTIONS = [
    SelectionOptions(num_negatives=3),
    SelectionOptions(num_negatives=3, space="log-odds", margin=0.5),
    SelectionOptions(num_negatives=3, wrong_pair_correction=False),
]


def questions(evaluator):
    return sum(len(trial.others) * len(trial.rationales) for trial in evaluator.trials)


@pytest.mark.parametrize("answer", [knowing, guessing])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_same_rationales_are_kept_with_the_same_weights(pairs, rationales, tmp_path, answer, options):
    plain, asked = FakeEvaluator(answer), FakeEvaluator(answer)
    full = select_rationales(pairs, rationales, plain, tmp_path / "full", options)
    early = select_rationales(pairs, rationales, EarlyStop(asked), tmp_path / "early", options)
    tables = [pq.read_table(tmp_path / name / "candidates.parquet").to_pandas() for name in ("full", "early")]
    kept = tables[0]["kept"]
    assert 0 < kept.sum() < kept.size
    assert tables[0].drop(columns="gain").equals(tables[1].drop(columns="gain"))
    selected = [pq.read_table(tmp_path / name / "selected.parquet") for name in ("full", "early")]
    assert selected[0].equals(selected[1])  # their gains, too
    assert full["rows"] == early["rows"] and full["evaluator"]["direct"] == early["evaluator"]["direct"]
    given_up = (tables[0]["gain"] != tables[1]["gain"]) & tables[0]["gain"].notna()
    assert (tables[1]["gain"][given_up] <= 0).all()  # before the correction, it does not gain either
    assert questions(asked) < 0.7 * questions(plain)


def test_what_was_given_up_is_there_in_the_scores_and_is_used_again(pairs, rationales, tmp_path):
    evaluator = EarlyStop(FakeEvaluator(knowing))
    first = select_rationales(pairs, rationales, evaluator, tmp_path, OPTIONS[0])
    (shard,) = (tmp_path / "shards").glob("*/*.parquet")
    rows = pq.read_table(shard).to_pylist()
    wrong = [row for row in rows if row["worker"] == "empty talk"]
    assert wrong and all(value != value for row in wrong for value in row["negatives_with"])  # NaN
    assert all(value == value for row in wrong for value in row["negatives_without"])
    again = EarlyStop(FakeEvaluator(knowing))
    assert select_rationales(pairs, rationales, again, tmp_path, OPTIONS[2])["rows"]["kept"] >= first["rows"]["kept"]
    assert again.evaluator.calls == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection": "absolute"}, "selection='absolute'"),
        ({"selection": "none", "intervention": "swap"}, "selection='none', intervention='swap'"),
        ({"intervention": "shuffle"}, "intervention='shuffle'"),
        ({"margin": -0.1}, "margin=-0.1"),
    ],
)
def test_options_with_which_it_could_matter_are_refused(pairs, rationales, tmp_path, options, message):
    evaluator = EarlyStop(FakeEvaluator(knowing))
    with pytest.raises(ValueError, match=f"gives up rationales that {message} could keep; allowed: counterfactual"):
        select_rationales(pairs, rationales, evaluator, tmp_path, SelectionOptions(num_negatives=3, **options))
    assert evaluator.evaluator.calls == []


def test_another_evaluator_than_one_that_asks_everything(pairs, rationales, tmp_path):
    select_rationales(pairs, rationales, FakeEvaluator(knowing), tmp_path, OPTIONS[0])
    with pytest.raises(ValueError, match="early_stop"):
        select_rationales(pairs, rationales, EarlyStop(FakeEvaluator(knowing)), tmp_path, OPTIONS[0])


def test_a_trial_that_has_no_wrong_pairs_is_asked_once():
    fake = FakeEvaluator(lambda query, target, rationale: len(rationale or "") - 2.0)
    alone = Trial("query", {"text": "q"}, [{"text": "t"}], [None, "abc", ""])
    other = Trial("target", {"text": "q"}, [{"text": "t"}, {"text": "u"}], [None, "", "abc"])
    answers = EarlyStop(fake).match_logits([alone, other])
    torch.testing.assert_close(answers[0], torch.tensor([[-2.0, 1.0, -2.0]]))
    expected = torch.tensor([[-2.0, -2.0, 1.0], [-2.0, torch.nan, 1.0]])
    torch.testing.assert_close(answers[1], expected, equal_nan=True)
    assert fake.calls == [2, 1]


def test_a_wrong_pair_that_can_not_be_read_is_named_by_its_trial():
    fake = FakeEvaluator(knowing)

    def strict(trials, answer=fake.match_logits):
        for number, trial in enumerate(trials):
            if {"text": "bad"} in trial.others:
                raise TrialError(number, "it can't be read")
        return answer(trials)

    fake.match_logits = strict
    alone = Trial("query", {"text": "q"}, [{"text": "t"}], [None, "abc"])
    bad = Trial("query", {"text": "q"}, [{"text": "t"}, {"text": "bad"}], [None, "abc"])
    with pytest.raises(TrialError) as caught:
        EarlyStop(fake).match_logits([alone, bad])
    assert caught.value.index == 1


def test_nan_is_refused_of_an_evaluator_that_does_not_stop_early(pairs, rationales, tmp_path):
    fake = FakeEvaluator(lambda query, target, rationale: float("nan") if rationale == "Let me think about it." else 0)
    with pytest.raises(ValueError, match="of them not finite"):
        select_rationales(pairs, rationales, fake, tmp_path / "one", OPTIONS[0])
    with pytest.raises(ValueError, match="of them not finite"):  # of the matching pair
        select_rationales(pairs, rationales, EarlyStop(fake), tmp_path / "two", OPTIONS[0])
