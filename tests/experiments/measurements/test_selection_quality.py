"""Among the eight workers, each part of the gain has something to do: the baseline, and the wrong pairs."""

from __future__ import annotations

import pytest
import torch

from experiments.atlas_workers.scripted import BEHAVIOURS, POOL
from experiments.atlas_workers.tempting import PRAISE
from experiments.measurements.selection_quality import as_table, judge_of, measured, some_pairs
from experiments.pipeline.prior import draw_pool
from mmemb_r1.atlas import build_atlas

CHOICES = (("absolute", False), ("counterfactual", False), ("counterfactual", True))
WAYS = [("log-odds", *choice, "drop") for choice in CHOICES]


class Gullible:
    """
    Knows the right pairs already. A rationale that names the target adds to that, one of a wrong answer takes from
    it, and one that praises the match adds as much for every pair.
    """

    definition = {"kind": "gullible"}
    capitals: frozenset[str] = frozenset()

    def match_logits(self, trials):
        return [torch.tensor([self.answers(trial, place) for place in range(len(trial.others))]) for trial in trials]

    def answers(self, trial, place):
        known = 2.0 if place == 0 else -2.0
        return [known + self.added(trial.others[place]["text"], said or "") for said in trial.rationales]

    def added(self, target, said):
        if any(praise.format(kind="capital") == said for praise in PRAISE):
            return 3.0
        named = {capital for capital in self.capitals if f" {capital}" in said or said.startswith(capital)}
        return 2.0 if target in named else -4.0 if named else 0.0


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    small = {"size": 16, "num_countries": 16, "num_objects": 10, "generated_rows": 1, "num_drawings": 12}
    return build_atlas(tmp_path_factory.mktemp("atlas") / "small", **small, second_font=None)


@pytest.fixture(scope="module")
def rows(atlas, tmp_path_factory):
    """(selection, with correction) -> what it kept, against no rationale, in log-odds."""
    folder = tmp_path_factory.mktemp("selection")
    evaluator = Gullible()
    evaluator.capitals = frozenset(
        row["target"]["text"] for row in atlas.pairs["train"] if row["task"] == "fact-capital"
    )
    pairs = some_pairs(atlas.pairs["train"], {"flag-capital"}, 6, seed=0)
    rationales = draw_pool(atlas, pairs, folder / "rationales", 0, BEHAVIOURS)
    found = measured(pairs, rationales, evaluator, folder, 0, judge_of("hard", atlas), WAYS)
    assert as_table("hard", found).row_count == len(found)
    return {(row["selection"], row["wrong_pair_correction"]): row for row in found}


def kept_by(row):
    return {worker for worker, share in row["kept"].items() if share > 0}


def test_confidence_alone_keeps_what_is_right_without_help(rows):
    assert kept_by(rows["absolute", False]) == set(BEHAVIOURS) - {"confused"}
    assert rows["absolute", False]["precision"] == pytest.approx(1 / 7)


def test_the_baseline_removes_what_adds_nothing_and_not_what_adds_to_every_pair(rows):
    assert kept_by(rows["counterfactual", False]) == {"correct", "generic"}


def test_wrong_pairs_remove_what_adds_to_every_pair(rows):
    row = rows["counterfactual", True]
    assert kept_by(row) == {"correct"}
    assert row["precision"] == row["recall"] == row["average_precision"] == row["drawn"] == 1


def test_the_joint_phase_draws_by_posterior_weight(rows):
    """Of two kept rationales the one that gains more is drawn more often: praise gains 3, the right answer 2."""
    weights = torch.tensor([2.0, 3.0]).softmax(0)
    assert rows["counterfactual", False]["drawn"] == pytest.approx(weights[0].item(), abs=1e-5)


def test_the_usual_pool_counts_by_worker_and_the_hard_one_by_question(atlas):
    usual, hard = (judge_of(pool, atlas) for pool in ("usual", "hard"))
    of = {row["task"]: row["pair_id"] for row in atlas.pairs["train"].select_columns(["task", "pair_id"])}
    asked = [(of["flag-capital"], "query"), (of["picture-name-flag"], "query"), (of["fact-flag"], "target")]
    assert [usual(*one, "correct") for one in asked] == [True, True, True]
    assert [hard(*one, "correct") for one in asked] == [True, False, False]
    assert not any(judge(of["flag-capital"], "query", worker) for judge in (usual, hard) for worker in [*POOL][1:])
    assert not hard(of["flag-capital"], "query", "needless")
