"""Rewards, each a function in TRL's form: lists of one value per rollout in, one float per rollout out."""

from __future__ import annotations

from mmemb_r1.training.rewards.alignment import alignment_reward
from mmemb_r1.training.rewards.cost import cost_reward
from mmemb_r1.training.rewards.format import format_reward

__all__ = ["alignment_reward", "cost_reward", "format_reward"]
