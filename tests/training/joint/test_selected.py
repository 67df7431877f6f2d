from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from mmemb_r1.training.joint.data import Drawn, SelectedRationales

COLUMNS = ("pair_id", "side", "text", "posterior", "worker")


def table(*rows, columns=COLUMNS):
    return Dataset.from_dict({name: [row[place] for row in rows] for place, name in enumerate(columns)})


@pytest.fixture
def selected():
    return SelectedRationales(
        table(
            ("a", "query", "rare", 0.1, "w2"),
            ("b", "target", "other", 1.0, "w1"),
            ("a", "query", "often", 0.7, "w1"),
            ("a", "target", "there", 1.0, "w1"),
            ("a", "query", "middling", 0.2, "w1"),
        )
    )


def drawn(selected, pair_id="a", side="query", number=4000, seed=0):
    rng = np.random.default_rng(seed)
    return [selected.draw(pair_id, side, rng) for _ in range(number)]


def test_draws_follow_the_posterior(selected):
    counts = Counter(drawn(selected))
    assert {text.text: text.posterior for text in counts} == {"rare": 0.1, "often": 0.7, "middling": 0.2}
    for choice, count in counts.items():
        assert count / 4000 == pytest.approx(choice.posterior, abs=4 * np.sqrt(0.25 / 4000))


def test_the_best_alone_is_that_of_the_highest_posterior_and_of_equal_ones_the_first():
    rows = [("a", "query", "rare", 0.2, "w"), ("a", "query", "best", 0.4, "w"), ("a", "query", "equal", 0.4, "w")]
    best = SelectedRationales(table(*rows), best_only=True)
    assert {choice.text for choice in drawn(best, number=50)} == {"best"}
    numbers = [np.random.default_rng(7) for _ in range(2)]
    for selected, rng in zip((best, SelectedRationales(table(*rows))), numbers, strict=True):
        selected.draw("a", "query", rng)
    assert numbers[0].random() == numbers[1].random()  # what is drawn after it is the same


def test_posteriors_of_one_side_add_up_to_one():
    selected = SelectedRationales(table(("a", "query", "x", 3.0, "w"), ("a", "query", "y", 1.0, "w")))
    assert set(drawn(selected, number=50)) == {Drawn("x", 0.75, ("x",)), Drawn("y", 0.25, ("y",))}


@pytest.mark.parametrize("number", [0.0, 1.0 - 2**-53])
def test_no_number_falls_outside(number):
    class Fixed:
        def random(self):
            return number

    rows = [("a", "query", f"r{place}", 0.1, "w") for place in range(10)]  # 0.1 ten times is not 1 exactly
    choice = SelectedRationales(table(*rows)).draw("a", "query", Fixed())
    assert choice.text == ("r9" if number else "r0")


def test_without_a_posterior_all_are_equally_likely():
    rows = [("a", "query", text) for text in "xyzw"]
    counts = Counter(drawn(SelectedRationales(table(*rows, columns=COLUMNS[:3]))))
    assert {choice.posterior for choice in counts} == {0.25}
    assert all(900 < count < 1100 for count in counts.values()) and len(counts) == 4


def test_sides_and_pairs_are_kept_apart(selected):
    assert set(drawn(selected, "a", "target", 20)) == {Drawn("there", 1.0, ("there",))}
    assert set(drawn(selected, "b", "target", 20)) == {Drawn("other", 1.0, ("other",))}


@pytest.mark.parametrize(("pair_id", "side"), [("b", "query"), ("unknown", "target")])
def test_where_nothing_was_kept_nothing_is_drawn_but_a_number_is(selected, pair_id, side):
    one, other = np.random.default_rng(0), np.random.default_rng(0)
    assert selected.draw(pair_id, side, one) is None
    selected.draw("a", "query", other)
    assert one.random() == other.random()


def test_what_it_tells(selected):
    assert selected.num_pairs == 2
    assert selected.covered(Dataset.from_dict({"pair_id": ["b", "c", "a", "b c"]})) == 2
    assert selected.num_rationales == 5
    assert list(selected.workers.items()) == [("w1", 4), ("w2", 1)]
    assert SelectedRationales(table(("a", "query", "x"), columns=COLUMNS[:3])).workers == {}


@pytest.mark.parametrize("column", COLUMNS[:3])
def test_refuses_a_missing_column(column):
    rows = table(("a", "query", "x", 1.0, "w")).remove_columns(column)
    there = ", ".join(name for name in COLUMNS if name != column)
    with pytest.raises(
        ValueError, match=f"no column '{column}'; it has: {there}. Give it selected.parquet, as `mmemb"
    ):
        SelectedRationales(rows)


def test_refuses_an_empty_table():
    with pytest.raises(ValueError, match="no rows: nothing was kept. Select with another margin, or without."):
        SelectedRationales(table())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a", "both", "x", 1.0, "w"), "in row 1, counted from 0, the side 'both'; allowed: query, target"),
        (("a", "query", " \n", 1.0, "w"), r"the text ' \\n'; allowed: text that is not blank"),
        (("a", "query", None, 1.0, "w"), "the text None; allowed: text that is not blank"),
        (
            ("a", "query", "x", 0.0, "w"),
            "the posterior 0.0; allowed: numbers above 0. Only what was kept belongs here",
        ),
        (("a", "query", "x", -0.5, "w"), "the posterior -0.5; allowed"),
        (("a", "query", "x", None, "w"), "the posterior None; allowed"),
        (("a", "query", "x", float("nan"), "w"), "the posterior nan; allowed"),
        (("a", "query", "x", float("inf"), "w"), "the posterior inf; allowed"),
    ],
)
def test_refuses_what_can_not_be_drawn_from(row, message):
    with pytest.raises(ValueError, match=message):
        SelectedRationales(table(("a", "query", "x", 1.0, "w"), row))


def test_segments_are_drawn_with_their_text():
    rows = table(("a", "query", "x. y.", 3.0, "w"), ("a", "query", "z.", 1.0, "w"))
    selected = SelectedRationales(rows.add_column("segments", [["x.", "y."], ["z."]]))
    assert set(drawn(selected, number=50)) == {Drawn("x. y.", 0.75, ("x.", "y.")), Drawn("z.", 0.25, ("z.",))}


@pytest.mark.parametrize("segments", [[], ["x", " "], None])
def test_refuses_segments_that_say_nothing(segments):
    rows = table(("a", "query", "x", 1.0, "w"), ("a", "query", "x", 1.0, "w"))
    with pytest.raises(ValueError, match=r"in row 1, counted from 0, the segments .*; allowed: a list of texts"):
        SelectedRationales(rows.add_column("segments", [["x"], segments]))
