from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from benchmarks import token_use
from mmemb_r1.training.joint.chunks import parts_by_number, parts_by_tokens


def cost(lengths, parts, pass_tokens):
    return sum(max(lengths[place] for place in part) * len(part) + pass_tokens for part in parts)


@pytest.mark.parametrize("pass_tokens", [0, 7, 100])
@pytest.mark.parametrize("max_rows", [None, 2])
def test_a_budget_of_tokens_is_kept_with_the_least_padding(pass_tokens, max_rows):
    rng = np.random.default_rng(pass_tokens)
    for _ in range(10):
        lengths = rng.integers(1, 60, size=8).tolist()
        ordered = sorted(lengths)
        ways = [
            [ordered[start:stop] for start, stop in pairwise((0, *cuts, 8))]
            for number in range(8)
            for cuts in combinations(range(1, 8), number)
        ]
        allowed = [
            way
            for way in ways
            if all(len(part) == 1 or max(part) * len(part) <= 90 and len(part) <= (max_rows or 8) for part in way)
        ]
        least = min(sum(max(part) * len(part) + pass_tokens for part in way) for way in allowed)
        parts = parts_by_tokens(lengths, 90, max_rows, pass_tokens)
        assert sorted(sum(parts, [])) == list(range(8))
        assert cost(lengths, parts, pass_tokens) == least
        assert all(
            len(part) == 1 or max(lengths[place] for place in part) * len(part) <= 90 and len(part) <= (max_rows or 8)
            for part in parts
        )
        assert max(lengths) == max(lengths[place] for place in parts[0])  # the longest first


def test_an_input_above_the_budget_is_alone():
    assert parts_by_tokens([5, 300, 5], 100) == [[1], [0, 2]]


def test_nothing_has_no_parts():
    assert parts_by_tokens([], 100) == parts_by_number([], 3) == []


@pytest.mark.slow
def test_most_tokens_of_pairs_like_those_of_mmeb_are_useful():
    """The benchmark whose figures the docs tell, on a quarter of the pairs."""
    found = {row["parted"]: row for row in token_use.measured(pairs=128, batches=1, seed=0)}
    new, old = found["16,384 tokens at once"], found["16 inputs at once"]
    assert new["useful_share"] >= 0.92 > old["useful_share"] > found["16 inputs at once, as drawn"]["useful_share"]
    assert new["passes"] <= old["passes"] * 1.5 and new["largest_pass_tokens"] < old["largest_pass_tokens"]
    assert found["two forward passes a side"]["useful_share"] < 0.6
