"""The recipes: how a checkpoint is trained, stage by stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmemb_r1._lazy import lazy_attributes

if TYPE_CHECKING:
    from mmemb_r1.training.adaptive.config import AdaptiveGRPOConfig
    from mmemb_r1.training.adaptive.trainer import AdaptiveGRPOTrainer
    from mmemb_r1.training.gate_phase import GateConfig, train_gate
    from mmemb_r1.training.joint.config import JointConfig
    from mmemb_r1.training.joint.trainer import JointTrainer


__all__ = ["AdaptiveGRPOConfig", "AdaptiveGRPOTrainer", "GateConfig", "JointConfig", "JointTrainer", "train_gate"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "AdaptiveGRPOConfig": "mmemb_r1.training.adaptive.config",
        "AdaptiveGRPOTrainer": "mmemb_r1.training.adaptive.trainer",
        "GateConfig": "mmemb_r1.training.gate_phase",
        "JointConfig": "mmemb_r1.training.joint.config",
        "JointTrainer": "mmemb_r1.training.joint.trainer",
        "train_gate": "mmemb_r1.training.gate_phase",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
