"""The recipes: how a checkpoint is trained, stage by stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmemb_r1._lazy import lazy_attributes

if TYPE_CHECKING:
    from mmemb_r1.training.adaptive_grpo_config import AdaptiveGRPOConfig
    from mmemb_r1.training.adaptive_grpo_trainer import AdaptiveGRPOTrainer
    from mmemb_r1.training.joint_config import JointConfig
    from mmemb_r1.training.joint_trainer import JointTrainer

__all__ = ["AdaptiveGRPOConfig", "AdaptiveGRPOTrainer", "JointConfig", "JointTrainer"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "AdaptiveGRPOConfig": "mmemb_r1.training.adaptive_grpo_config",
        "AdaptiveGRPOTrainer": "mmemb_r1.training.adaptive_grpo_trainer",
        "JointConfig": "mmemb_r1.training.joint_config",
        "JointTrainer": "mmemb_r1.training.joint_trainer",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
