"""Rewards of rollouts, by name: functions in TRL's form, of lists with one value per rollout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmemb_r1._lazy import import_object

RewardFunction = Callable[..., list[float]]


def target_probability_reward(target_probability: Sequence[float], **kwargs: Any) -> list[float]:
    """
    Reward what the last embedding is for: the probability of the pair's target among negatives.

    Being relative to them, it does not reward rationales that raise every pair's score. Source: a reward for meeting
    the target is the paper's; a bounded one is ours.

    >>> target_probability_reward(target_probability=[0.25, 1.0])
    [0.25, 1.0]
    """
    return [float(value) for value in target_probability]


def target_cosine_reward(target_cosine: Sequence[float], **kwargs: Any) -> list[float]:
    """
    Reward the cosine similarity of the last embedding to the pair's target, whatever it competes with.

    >>> target_cosine_reward(target_cosine=[0.5])
    [0.5]
    """
    return [float(value) for value in target_cosine]


def target_margin_reward(target_margin: Sequence[float], **kwargs: Any) -> list[float]:
    """
    Reward by how much the similarity to the pair's target is above that to the nearest negative. Source: ours.

    >>> target_margin_reward(target_margin=[-0.125])
    [-0.125]
    """
    return [float(value) for value in target_margin]


def cost_reward(num_reasoning_tokens: Sequence[int], reasoning_budget: Sequence[int], **kwargs: Any) -> list[float]:
    """
    Charge each rollout the share of its budget that its rationale tokens spent: -1 for a whole one. Source: ours.

    >>> cost_reward(num_reasoning_tokens=[0, 16], reasoning_budget=[64, 64])
    [0.0, -0.25]
    """
    return [-used / budget for used, budget in zip(num_reasoning_tokens, reasoning_budget, strict=True)]


def format_reward(
    reasoned: Sequence[bool], num_reasoning_tokens: Sequence[int], truncated: Sequence[bool], **kwargs: Any
) -> list[float]:
    """
    Reward form: 1 for a direct embedding and for rationales that say something and end by themselves, 0 for others.

    It favours neither decision. Source: a format reward is the paper's; that both decisions get it is ours.

    >>> format_reward(reasoned=[False, True, True], num_reasoning_tokens=[0, 9, 64], truncated=[False, False, True])
    [1.0, 1.0, 0.0]
    """
    rows = zip(reasoned, num_reasoning_tokens, truncated, strict=True)
    return [float(not thinks or (length > 0 and not cut)) for thinks, length, cut in rows]


# Name -> function. Form, cost and one of those of the target are always used, with weights of their own:
# `format_weight`, `cost_weight` and `target_probability_weight`. Others are asked for in `AdaptiveGRPOConfig.rewards`.
REWARDS: dict[str, RewardFunction] = {
    "format": format_reward,
    "target_probability": target_probability_reward,
    "target_cosine": target_cosine_reward,
    "target_margin": target_margin_reward,
    "cost": cost_reward,
}
TARGET_REWARDS = ("probability", "cosine", "margin")


def find_reward(name: str) -> RewardFunction:
    """
    Find a reward by its name in `REWARDS`, or by its import path `module:function`; others are a `ValueError`.

    >>> find_reward("cost").__name__
    'cost_reward'
    """
    if name in REWARDS:
        return REWARDS[name]
    if ":" not in name:
        raise ValueError(
            f"there is no reward {name!r}; allowed: {', '.join(REWARDS)}, or the import path of your own, "
            "module:function, for example my_rewards:brevity."
        )
    found = import_object(name)
    if not callable(found):
        raise ValueError(f"the reward {name!r} is a {type(found).__name__}; it has to be a function.")
    return found
