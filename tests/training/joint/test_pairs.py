from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from mmemb_r1.modeling.media_mmemb_r1 import open_image
from mmemb_r1.training.joint.data import DrawnRow, JointPairs, SelectedRationales

DRAWN = [DrawnRow(0, epoch, position) for epoch in range(20) for position in range(100)]


@pytest.fixture(scope="session")
def selected():
    return SelectedRationales(
        Dataset.from_dict(
            {
                "pair_id": ["pair 0", "pair 0", "pair 0", "pair 6", "pair 6"],
                "side": ["query", "query", "target", "target", "target"],
                "text": ["rare", "often", "there", "one", "two"],
                "posterior": [0.2, 0.8, 1.0, 0.5, 0.5],
            }
        )
    )


@pytest.fixture(scope="session")
def texts(make_pairs):
    """One pair with rationales and ten negatives, many times visited: no pictures to decode."""
    return make_pairs(
        [
            {
                "query": {"text": "a"},
                "target": {"text": "b"},
                "query_rationale": ["first.", "second."],
                "negatives": [{"text": str(number)} for number in range(10)],
            },
            {"query": {"text": "c"}, "target": {"text": "d"}, "negatives": [{"text": "e", "instruction": "f"}]},
        ]
    )


class TestWhatAVisitShows:
    def test_the_pair_as_it_is(self, rows):
        example = JointPairs(rows, 0)[DrawnRow(7, 0, 0)]
        seed = example.pop("seed")
        (picture,) = example["target"].pop("image")
        assert open_image(picture).size == (64, 64) and 0 <= seed < 2**63  # it is not decoded before a batch is made
        assert example == {
            "pair_id": "pair 7",
            "query": {"text": "green"},
            "target": {},
            "negatives": [],
            "query_rationale": ["It is green."],
            "target_rationale": ["It is green."],
            "query_weight": 1.0,
            "target_weight": 1.0,
        }

    def test_segments_stay_apart(self, texts):
        assert JointPairs(texts, 0)[DrawnRow(0, 0, 0)]["query_rationale"] == ["first.", "second."]

    def test_a_pair_without_a_name_goes_by_its_row(self, texts):
        bare = texts.remove_columns(["pair_id", "query_rationale", "target_rationale", "negatives"])
        example = JointPairs(bare, 0)[DrawnRow(1, 0, 0)]
        assert (example["pair_id"], example["query_rationale"], example["negatives"]) == ("row 1", [], [])

    def test_there_are_as_many_as_rows(self, rows):
        assert len(JointPairs(rows, 0)) == len(rows)

    def test_columns_that_are_not_used_are_not_read(self, rows, selected):
        own = JointPairs(rows, 0).table.column_names
        assert own == ["pair_id", "query", "target", "query_rationale", "target_rationale"]
        drawn = JointPairs(rows, 0, rationales=selected, num_hard_negatives=1).table.column_names
        assert drawn == ["pair_id", "query", "target", "negatives"]


class TestDrawing:
    def test_over_many_visits_it_follows_the_posterior(self, texts, selected):
        pairs = JointPairs(texts, 3, rationales=selected)
        visits = [pairs[visit] for visit in DRAWN]
        counts = Counter(example["query_rationale"][0] for example in visits)
        assert set(counts) == {"rare", "often"}
        assert counts["rare"] / len(DRAWN) == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / len(DRAWN)))
        assert {tuple(example["target_rationale"]) for example in visits} == {("there",)}
        assert {example["query_weight"] for example in visits} == {1.0}

    @pytest.mark.parametrize("changed", ["seed", "epoch", "position"])
    def test_it_depends_on_seed_epoch_and_position_alone(self, texts, selected, changed):
        def examples(**changes):
            where = {"seed": 3, "epoch": 0, "position": 0, **changes}
            pairs = JointPairs(texts, where["seed"], rationales=selected, num_hard_negatives=3)
            return [pairs[DrawnRow(0, where["epoch"], where["position"] + number)] for number in range(30)]

        def distinct(examples):
            return [(tuple(e["query_rationale"]), str(e["negatives"]), e["seed"]) for e in examples]

        first = distinct(examples())
        assert distinct(examples()) == first
        other = distinct(examples(**{changed: 100}))
        for place in range(3):
            assert [visit[place] for visit in other] != [visit[place] for visit in first]
        assert not {seed for *_, seed in first} & {seed for *_, seed in other}

    def test_what_other_visits_came_before_does_not_matter(self, texts, selected):
        pairs = JointPairs(texts, 3, rationales=selected, num_hard_negatives=3)
        there = [pairs[visit] for visit in DRAWN[:20]]
        back = [pairs[visit] for visit in DRAWN[:20][::-1]][::-1]
        assert there == back

    def test_sides_are_drawn_independently(self, make_pairs):
        both = SelectedRationales(
            Dataset.from_dict(
                {
                    "pair_id": ["pair 0"] * 4,
                    "side": ["query", "query", "target", "target"],
                    "text": ["q0", "q1", "t0", "t1"],
                }
            )
        )
        pairs = JointPairs(make_pairs([{"query": {"text": "a"}, "target": {"text": "b"}}]), 0, rationales=both)
        seen = Counter((e["query_rationale"][0], e["target_rationale"][0]) for e in map(pairs.__getitem__, DRAWN))
        assert len(seen) == 4 and min(seen.values()) > 0.2 * len(DRAWN)

    def test_nothing_kept_is_the_direct_path_even_where_the_table_has_a_rationale(self, texts, rows, selected):
        example = JointPairs(texts, 0, rationales=selected)[DrawnRow(1, 0, 0)]
        assert example["query_rationale"] == example["target_rationale"] == []
        assert JointPairs(rows, 0)[DrawnRow(6, 0, 0)]["query_rationale"] == ["It is red."]
        half = JointPairs(rows, 0, rationales=selected)[DrawnRow(6, 0, 0)]
        assert half["query_rationale"] == [] and half["target_rationale"][0] in ("one", "two")

    def test_weights_are_the_posterior_on_request(self, texts, rows, selected):
        pairs = JointPairs(texts, 0, rationales=selected, weight_by_posterior=True)
        seen = {
            (e["query_rationale"][0], e["query_weight"], e["target_weight"]) for e in map(pairs.__getitem__, DRAWN)
        }
        assert seen == {("rare", 0.2, 1.0), ("often", 0.8, 1.0)}
        assert pairs[DrawnRow(1, 0, 0)]["query_weight"] == 1.0
        assert JointPairs(rows, 0, weight_by_posterior=True)[DrawnRow(6, 0, 0)]["query_weight"] == 1.0


class TestHardNegatives:
    def test_so_many_are_drawn_without_replacement(self, texts):
        pairs = JointPairs(texts, 0, num_hard_negatives=3)
        drawn = [[value["text"] for value in pairs[visit]["negatives"]] for visit in DRAWN]
        assert all(len(set(negatives)) == 3 and negatives == sorted(negatives) for negatives in drawn)
        counts = Counter(text for negatives in drawn for text in negatives)
        assert len(counts) == 10
        assert all(count / len(DRAWN) == pytest.approx(0.3, abs=0.05) for count in counts.values())

    def test_a_pair_that_has_fewer_gives_all(self, texts):
        (negative,) = JointPairs(texts, 0, num_hard_negatives=3)[DrawnRow(1, 0, 0)]["negatives"]
        assert negative == {"text": "e", "instruction": "f"}

    def test_a_pair_without_any_gives_none(self, rows):
        assert JointPairs(rows, 0, num_hard_negatives=3)[DrawnRow(0, 0, 0)]["negatives"] == []

    def test_the_rationale_that_is_drawn_does_not_depend_on_them(self, texts, selected):
        with_them = JointPairs(texts, 0, rationales=selected, num_hard_negatives=3)
        without = JointPairs(texts, 0, rationales=selected)
        for visit in DRAWN[:30]:
            assert with_them[visit]["query_rationale"] == without[visit]["query_rationale"]


class TestRefuses:
    def test_hard_negatives_without_a_column(self, texts):
        with pytest.raises(
            ValueError, match="num_hard_negatives=2, but the pairs table has no column 'negatives'; it"
        ):
            JointPairs(texts.remove_columns("negatives"), 0, num_hard_negatives=2)

    def test_selected_rationales_for_pairs_without_names(self, texts, selected):
        with pytest.raises(ValueError, match="found by pair_id, which the pairs table lacks; it has: task, query"):
            JointPairs(texts.remove_columns("pair_id"), 0, rationales=selected)

    def test_selected_rationales_of_other_pairs(self, texts, selected):
        renamed = texts.remove_columns("pair_id").add_column("pair_id", ["x", "y"])
        with pytest.raises(
            ValueError, match="None of the 2 pairs of the selected table is in the pairs table; give bo"
        ):
            JointPairs(renamed, 0, rationales=selected)
