from __future__ import annotations

import pytest
from datasets import Dataset

from mmemb_r1.training.selection.pairs import Negatives, NegativeSampler, index_pairs, other_side


@pytest.fixture
def sampler(make_pair):
    indices = {}

    def index_of(rows, without, order):
        pairs = [make_pair(str(number), *row) for number, row in enumerate(rows) if number != without]
        return index_pairs(Dataset.from_list(pairs if order is None else [pairs[number] for number in order]))

    def make(rows, num_negatives=2, seed=0, without=None, order=None):
        key = repr((rows, without, order))
        if key not in indices:
            indices[key] = index_of(rows, without, order)
        return NegativeSampler(indices[key], num_negatives, seed)

    return make


def texts(rows, negatives, side, pair=0):
    column = {"query": 1, "target": 0}[side]
    own = [rows[pair][3][place] for place in negatives.own]
    return own + [rows[row][column] for row in negatives.rows]


ROWS = [(f"q{number}", f"t{number}", "abc"[number % 3]) for number in range(30)]


class TestDraw:
    @pytest.mark.parametrize("side", ["query", "target"])
    def test_of_the_same_task_never_the_partner_none_twice(self, sampler, side):
        for seed in range(20):
            made = sampler(ROWS, 5, seed)
            for row in range(len(ROWS)):
                drawn = made.draw(row, side)
                assert drawn.own == ()
                assert len(set(drawn.rows)) == 5
                assert row not in drawn.rows
                assert {ROWS[other][2] for other in drawn.rows} == {ROWS[row][2]}

    def test_is_a_function_of_the_seed_the_pair_and_the_side(self, sampler):
        made, again = sampler(ROWS, 4), sampler(ROWS, 4)
        drawn = [made.draw(row, "query") for row in range(30)]
        assert drawn == [again.draw(row, "query") for row in reversed(range(30))][::-1]
        assert drawn != [sampler(ROWS, 4, seed=1).draw(row, "query") for row in range(30)]
        assert drawn != [made.draw(row, "target") for row in range(30)]

    def test_all_others_may_be_drawn(self, sampler):
        drawn = {row for seed in range(100) for row in sampler(ROWS, 1, seed).draw(0, "query").rows}
        assert drawn == set(range(3, 30, 3))

    def test_of_other_tasks_where_the_own_has_too_few(self, sampler):
        rows = [("q0", "t0", "small"), ("q1", "t1", "small"), *(("q", f"t{n}", "big") for n in range(2, 9))]
        for seed in range(10):
            drawn = sampler(rows, 4, seed).draw(0, "query")
            assert drawn.rows[0] == 1
            assert len(set(drawn.rows[1:]) & set(range(2, 9))) == 3

    def test_partners_of_an_identical_input_are_none(self, sampler):
        rows = [("same", "t0", "a"), ("same", "t1", "b"), ("same", "t2", "a"), ("x", "t3", "a"), ("y", "t0", "a")]
        for seed in range(10):
            assert sampler(rows, 1, seed).draw(0, "query").rows == (3,)
        with pytest.raises(ValueError, match="the pair '0' has 1 possible negatives for its query"):
            sampler(rows, 2).draw(0, "query")

    def test_identical_targets_keep_each_others_queries_out(self, sampler):
        rows = [("q0", "t"), ("q1", "t"), ("q2", "t"), ("q3", "u")]
        assert {sampler(rows, 1, seed).draw(0, "target").rows for seed in range(10)} == {(3,)}

    def test_no_content_twice(self, sampler):
        rows = [("q0", "t0"), *((f"q{n}", f"t{n % 3}") for n in range(1, 20))]
        for seed in range(10):
            drawn = sampler(rows, 2, seed).draw(0, "query")
            assert sorted(texts(rows, drawn, "query")) == ["t1", "t2"]

    @pytest.mark.parametrize("side", ["query", "target"])
    def test_changes_only_where_what_it_has_leaves(self, sampler, side):
        rows = [(f"q{number}", f"t{number}", "ab"[number % 2]) for number in range(200)]
        met = 0
        for left in (0, 77, 199):
            whole, fewer = sampler(rows, 4), sampler(rows, 4, without=left)
            drawn = {row: whole.draw(row, side).rows for row in range(200) if row != left}
            again = {row: fewer.draw(row - (row > left), side).rows for row in drawn}
            same = [row for row in drawn if left not in drawn[row]]
            met += 199 - len(same)
            assert all(again[row] == tuple(other - (other > left) for other in drawn[row]) for row in same)
        assert 0 < met < 3 * 50

    def test_the_order_of_the_table_changes_nothing(self, sampler):
        order = list(range(len(ROWS)))[::-1]
        whole, turned = sampler(ROWS, 4), sampler(ROWS, 4, order=order)
        for place, row in enumerate(order):
            assert [order[other] for other in turned.draw(place, "query").rows] == list(whole.draw(row, "query").rows)


class TestOwnNegatives:
    rows = [("q0", "t0", "a", ("hard", "t0", "hard", "t1", "harder")), ("q0", "t1", "a"), ("q2", "t2", "a")]

    def test_come_first_without_false_ones_and_doubles(self, sampler):
        assert sampler(self.rows, 2).draw(0, "query") == Negatives(own=(0, 4), rows=())
        assert sampler(self.rows, 1).draw(0, "query") == Negatives(own=(0,), rows=())

    def test_are_filled_up_from_the_table(self, sampler):
        assert sampler(self.rows, 3).draw(0, "query") == Negatives(own=(0, 4), rows=(2,))

    def test_are_targets_and_thus_not_for_the_target(self, sampler):
        assert sampler(self.rows, 1).draw(0, "target") == Negatives(own=(), rows=(2,))

    def test_one_that_is_in_the_table_is_not_drawn_again(self, sampler):
        rows = [("q0", "t0", "a", ("t1",)), ("q1", "t1"), ("q2", "t2")]
        assert sampler(rows, 2).draw(0, "query") == Negatives(own=(0,), rows=(2,))


class TestCheck:
    def test_finds_a_pair_with_too_few(self, sampler):
        rows = [("q0", "t0"), ("q1", "t1"), ("q1", "t2"), ("q3", "t3")]
        made = sampler(rows, 3)
        made.check([(0, "query"), (3, "query")])
        with pytest.raises(ValueError, match="the pair '1' has 2 possible negatives .* num_negatives=3.*add pairs"):
            made.check([(0, "query"), (1, "query")])

    def test_counts_own_negatives(self, sampler):
        rows = [("q0", "t0", "a", ("x", "y")), ("q1", "t1", "a")]
        made = sampler(rows, 3)
        made.check([(0, "query")])
        with pytest.raises(ValueError, match="the pair '0' has 1 possible negatives for its target"):
            made.check([(0, "target")])

    def test_a_single_pair_has_none(self, sampler):
        with pytest.raises(ValueError, match="has 0 possible negatives"):
            sampler([("q", "t")], 1).check([(0, "query")])


class TestIndex:
    def test_says_which_inputs_are_the_same(self, make_pair):
        table = [make_pair("a", "x", "y", negatives=["z", "x"]), make_pair("b", "x", "z"), make_pair("c", "z", "y")]
        index = index_pairs(Dataset.from_list(table))
        (x, x2, z), (y, z2, y2) = index.content["query"].tolist(), index.content["target"].tolist()
        assert x == x2 and z == z2 and y == y2 and len({x, y, z}) == 3
        assert list(index.negatives) == [(z, x), (), ()] and index.negatives[-3] == (z, x)
        assert (list(index.ids), index.tasks) == (["a", "b", "c"], ["capital"] * 3)

    def test_the_fingerprint_is_of_the_content(self, make_pair):
        rows = [make_pair("a", "x", "y"), make_pair("b", "z", "w")]
        first = index_pairs(Dataset.from_list(rows)).fingerprint
        assert index_pairs(Dataset.from_list(rows).select([1, 0]).select([1, 0])).fingerprint == first
        for changed in (
            rows[::-1],
            [{**rows[0], "task": "other"}, rows[1]],
            [rows[0], make_pair("b", "z", "v")],
            [rows[0], make_pair("b", "z", "w", negatives=["x"])],
        ):
            assert index_pairs(Dataset.from_list(changed)).fingerprint != first

    def test_task_and_negatives_may_be_missing(self, pairs):
        index = index_pairs(pairs.remove_columns(["task", "negatives"]))
        assert set(index.tasks) == {""}
        assert set(index.negatives) == {()}

    def test_refuses_negatives_that_are_no_inputs(self, pairs):
        table = pairs.remove_columns("negatives").add_column("negatives", [["Lima"]] * len(pairs))
        with pytest.raises(
            ValueError, match="'negatives' of the pairs table holds .*string.*allowed: a list of inputs"
        ):
            index_pairs(table)

    def test_sides(self):
        assert [other_side(side) for side in ("query", "target")] == ["target", "query"]
