from __future__ import annotations

import pytest
import torch

from mmemb_r1.training.adaptive.advantages import (
    decision_advantages,
    leave_one_out,
    strata,
    token_advantages,
    utility_rewards,
)
from mmemb_r1.training.adaptive.forward import decision_logps


def group(num_direct, num_reasoned, seed=0):
    reasoned = torch.tensor([[False] * num_direct + [True] * num_reasoned])
    return torch.rand(1, num_direct + num_reasoned, generator=torch.Generator().manual_seed(seed)), reasoned


@pytest.mark.parametrize("probability", [0.01, 0.5, 0.99])
@pytest.mark.parametrize(("num_direct", "num_reasoned"), [(1, 2), (1, 7), (3, 3), (6, 2)])
def test_the_gradient_is_the_policys_whatever_the_strata(probability, num_direct, num_reasoned):
    rewards, reasoned = group(num_direct, num_reasoned)
    logit = torch.logit(torch.tensor([probability], dtype=torch.float64)).requires_grad_()
    advantages = decision_advantages(rewards.double(), reasoned, torch.tensor([probability], dtype=torch.float64))
    (advantages * decision_logps(logit[:, None].expand(reasoned.shape), reasoned)).mean().backward()
    direct, thought = rewards[~reasoned].double().mean(), rewards[reasoned].double().mean()
    assert logit.grad.item() == pytest.approx(probability * (1 - probability) * (thought - direct).item(), rel=1e-6)


def test_a_floor_lets_a_collapsed_gate_recover():
    rewards, reasoned = torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([[False, True, True]])
    logit = torch.tensor([-20.0]).requires_grad_()
    advantages = decision_advantages(rewards, reasoned, logit.detach().sigmoid(), floor=0.02)
    (advantages * decision_logps(logit[:, None].expand(reasoned.shape), reasoned)).mean().backward()
    assert logit.grad.item() == pytest.approx(0.02, rel=1e-3)


def test_no_decision_is_favoured_where_both_are_worth_the_same():
    _, reasoned = group(1, 3)
    assert decision_advantages(torch.full((1, 4), 0.7), reasoned, torch.tensor([0.3])).abs().max() < 1e-6


def test_groups_do_not_touch_each_other():
    rewards, reasoned = (torch.cat(parts) for parts in zip(group(1, 3, seed=0), group(1, 3, seed=1), strict=True))
    probs = torch.tensor([0.2, 0.9])
    both = decision_advantages(rewards, reasoned, probs)
    for row in range(2):
        alone = decision_advantages(rewards[row : row + 1], reasoned[row : row + 1], probs[row : row + 1])
        torch.testing.assert_close(both[row : row + 1], alone)


def test_rationales_are_compared_with_each_other_only():
    rewards, reasoned = group(1, 4)
    changed = rewards.clone()
    changed[:, 0] = 100.0  # the direct rollout's
    advantages = leave_one_out(rewards, reasoned)
    torch.testing.assert_close(advantages, leave_one_out(changed, reasoned))
    assert advantages[0, 0] == 0 and advantages.sum().abs() < 1e-6
    others = torch.stack([rewards[0, [j for j in range(1, 5) if j != i]].mean() for i in range(1, 5)])
    torch.testing.assert_close(advantages[0, 1:], rewards[0, 1:] - others)


def test_a_rationale_alone_has_nothing_to_be_compared_with():
    assert leave_one_out(torch.tensor([[0.0, 5.0]]), torch.tensor([[False, True]])).tolist() == [[0.0, 0.0]]


def test_strata():
    counts, means = strata(torch.tensor([[4.0, 1.0, 3.0]]), torch.tensor([[False, True, True]]))
    assert counts.tolist() == [[1.0, 2.0]] and means.tolist() == [[4.0, 2.0]]


def test_the_utility_is_clipped_and_indifference_counts_as_direct():
    reasoned = torch.tensor([[False, True]] * 3)
    rewards = utility_rewards(torch.tensor([0.9, -0.9, 0.0]), reasoned, clip=0.5, tolerance=0.1)
    torch.testing.assert_close(rewards[:, 1], torch.tensor([0.5, -0.5, -0.1]))
    torch.testing.assert_close(rewards[:, 0], -rewards[:, 1])


def test_each_kind_of_token_has_its_own_mean():
    decided, said = torch.tensor([2.0, 4.0]), torch.tensor([0.0, 3.0])
    mask = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 1, 0, 1]])  # a direct rollout; one with two rounds to its end
    markers = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 0]]).bool()
    counts = torch.stack([torch.tensor(2), mask[:, 1:].sum(), mask.sum()])
    advantages = token_advantages(decided, said, markers, counts, decision_weight=0.5, rationale_weight=3.0)
    mean = (advantages * mask).sum(dim=1) / mask.sum()  # what a mean over all tokens makes of each row
    assert mean[0].item() == pytest.approx(0.5 * 2.0 / 2)
    # two tokens as rationale's share of three, and a later decision as one of two rollouts' decisions
    assert mean[1].item() == pytest.approx(0.5 * 4.0 / 2 + 3.0 * (2 * 3.0) / 3 + 0.5 * 3.0 / 2)
