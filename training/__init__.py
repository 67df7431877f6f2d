"""Train a checkpoint, stage by stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmemb_r1._lazy import lazy_attributes

if TYPE_CHECKING:
    from mmemb_r1.training.adaptive.config import AdaptiveGRPOConfig
    from mmemb_r1.training.adaptive.run import AdaptiveRun, train_adaptive
    from mmemb_r1.training.adaptive.trainer import AdaptiveGRPOTrainer
    from mmemb_r1.training.joint.config import JointConfig
    from mmemb_r1.training.joint.run import JointRun, train_joint
    from mmemb_r1.training.joint.trainer import JointTrainer


__all__ = [
    "AdaptiveGRPOConfig",
    "AdaptiveGRPOTrainer",
    "AdaptiveRun",
    "JointConfig",
    "JointRun",
    "JointTrainer",
    "train_adaptive",
    "train_joint",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "AdaptiveGRPOConfig": "mmemb_r1.training.adaptive.config",
        "AdaptiveGRPOTrainer": "mmemb_r1.training.adaptive.trainer",
        "AdaptiveRun": "mmemb_r1.training.adaptive.run",
        "JointConfig": "mmemb_r1.training.joint.config",
        "JointRun": "mmemb_r1.training.joint.run",
        "JointTrainer": "mmemb_r1.training.joint.trainer",
        "train_adaptive": "mmemb_r1.training.adaptive.run",
        "train_joint": "mmemb_r1.training.joint.run",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
