from __future__ import annotations

import pytest
import torch

from experiments.pipeline.gate import decisions, gate_inputs, utility_gap
from mmemb_r1.content import given_parts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(thinking):
    return thinking("qwen3_vl", max_reasoning_rounds=1)


@pytest.fixture(scope="module")
def policy(small_atlas):
    return small_atlas.pairs["policy"].select(range(0, 60, 4)).flatten_indices()


def test_decisions_of_one_round_are_those_of_the_first_embedding(model, policy, small_atlas):
    hidden, gap = decisions(model, policy, small_atlas.candidates, rounds=1, batch_size=8)
    queries = [given_parts(query) for query in policy["query"]]
    torch.testing.assert_close(hidden, gate_inputs(model, queries, 8), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gap, utility_gap(model, policy, small_atlas.candidates), atol=1e-4, rtol=1e-3)


def test_every_round_is_a_decision_of_its_own(model, policy, small_atlas):
    hidden, gap = decisions(model, policy, small_atlas.candidates, rounds=3, batch_size=8)
    assert hidden.shape[0] == gap.shape[0] == 3 * len(policy)
    states = hidden.view(len(policy), 3, -1)
    one, _ = decisions(model, policy, small_atlas.candidates, rounds=1, batch_size=8)
    torch.testing.assert_close(states[:, 0], one, atol=1e-4, rtol=1e-4)
    assert (states[:, 1] - states[:, 0]).abs().max() > 1e-3  # the gate reads another state after a thought
