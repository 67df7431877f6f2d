from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mmemb_r1.rationale_tokens import INTERVENTIONS, shuffled, swap_donors
from mmemb_r1.seeding import random_order, seeded_random

TEXT = "The flag is red and white and red again"


def test_there_are_three():
    assert INTERVENTIONS == ("drop", "swap", "shuffle")


class TestShuffled:
    def test_the_words_stay_and_their_order_does_not(self):
        assert Counter(shuffled(TEXT).split()) == Counter(TEXT.split())
        assert all(shuffled(TEXT, seed).split() != TEXT.split() for seed in range(50))
        assert all(shuffled("Lima Peru", seed) == "Peru Lima" for seed in range(10))

    def test_is_a_function_of_text_and_seed(self):
        assert shuffled(TEXT, 1) == shuffled(TEXT, 1)
        assert len({shuffled(TEXT, seed) for seed in range(20)}) > 10

    @pytest.mark.parametrize("text", ["", "Lima", "no no no"])
    def test_where_no_two_words_differ_nothing_changes(self, text):
        assert shuffled(text) == text


class TestSwapDonors:
    strata = np.array([0] * 6 + [1] * 4 + [-1, 2, 2])
    anchors = np.array([1, 1, 2, 2, 3, 3, 1, 1, 1, 4, 5, 6, 6])
    names = list(range(13))

    def test_a_donor_is_of_the_stratum_and_about_another_input(self):
        for seed in range(20):
            donors = swap_donors(self.strata, self.anchors, self.names, seed)
            there = np.flatnonzero(donors >= 0)
            assert there.tolist() == list(range(10))
            assert (self.strata[donors[there]] == self.strata[there]).all()
            assert (self.anchors[donors[there]] != self.anchors[there]).all()

    def test_every_other_one_may_be_it(self):
        drawn = {swap_donors(self.strata, self.anchors, self.names, seed)[0].item() for seed in range(60)}
        assert drawn == {2, 3, 4, 5}

    def test_is_a_function_of_name_and_seed(self):
        first, again = (swap_donors(self.strata, self.anchors, self.names) for _ in range(2))
        assert first.tolist() == again.tolist()
        assert first.tolist() != swap_donors(self.strata, self.anchors, [f"{name}'" for name in self.names]).tolist()

    def test_a_donor_differs_in_every_anchor(self):
        texts, answers = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 0])
        anchors, strata = np.stack([texts, answers], axis=1), np.zeros(5, dtype=np.int64)
        drawn = [swap_donors(strata, anchors, "abcde", seed) for seed in range(40)]
        possible = [{donors[row].item() for donors in drawn} for row in range(5)]
        assert possible == [{3}, {2, 4}, {1}, {0, 4}, {1, 3}]

    def test_where_one_anchor_is_the_same_for_all_there_is_no_donor(self):
        anchors = np.stack([np.arange(4), np.zeros(4)], axis=1).astype(np.int64)
        assert swap_donors(np.zeros(4, dtype=np.int64), anchors, "abcd").tolist() == [-1] * 4

    def test_a_row_alone_may_have_no_donor(self):
        anchors = np.array([[0, 0], [0, 1], [1, 0]])  # the first one shares something with each of the others
        assert swap_donors(np.zeros(3, dtype=np.int64), anchors, "abc").tolist() == [-1, 2, 1]


class TestRandomOrder:
    def test_is_an_order(self):
        for size in (0, 1, 7):
            assert sorted(random_order(size, seeded_random(size))) == list(range(size))

    def test_every_order_is_as_likely(self):
        counts = Counter(tuple(random_order(3, seeded_random(seed))) for seed in range(3000))
        assert len(counts) == 6
        assert all(400 < count < 600 for count in counts.values())

    def test_the_first_of_many_come_at_once(self):
        assert len({next(random_order(10**12, seeded_random(seed))) for seed in range(5)}) == 5
