"""Train a checkpoint, stage by stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmemb_r1._lazy import lazy_attributes

if TYPE_CHECKING:
    from mmemb_r1.training.adaptive.config import AdaptiveGRPOConfig
    from mmemb_r1.training.adaptive.run import AdaptiveRun, train_adaptive
    from mmemb_r1.training.adaptive.trainer import AdaptiveGRPOTrainer
    from mmemb_r1.training.gate_phase import GateConfig, train_gate
    from mmemb_r1.training.joint.config import JointConfig
    from mmemb_r1.training.joint.run import JointRun, train_joint
    from mmemb_r1.training.joint.trainer import JointTrainer
    from mmemb_r1.training.rationales.draw import draw_rationales
    from mmemb_r1.training.rationales.pool import load_pool
    from mmemb_r1.training.rationales.table import read_rationales
    from mmemb_r1.training.selection.config import SelectionOptions
    from mmemb_r1.training.selection.evaluator import load_evaluator
    from mmemb_r1.training.selection.evaluator_trainer import EvaluatorConfig, EvaluatorTrainer
    from mmemb_r1.training.selection.select import select_rationales
    from mmemb_r1.training.tables import read_pairs


__all__ = [
    "AdaptiveGRPOConfig",
    "AdaptiveGRPOTrainer",
    "AdaptiveRun",
    "EvaluatorConfig",
    "EvaluatorTrainer",
    "GateConfig",
    "JointConfig",
    "JointRun",
    "JointTrainer",
    "SelectionOptions",
    "draw_rationales",
    "load_evaluator",
    "load_pool",
    "read_pairs",
    "read_rationales",
    "select_rationales",
    "train_adaptive",
    "train_gate",
    "train_joint",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "AdaptiveGRPOConfig": "mmemb_r1.training.adaptive.config",
        "AdaptiveGRPOTrainer": "mmemb_r1.training.adaptive.trainer",
        "AdaptiveRun": "mmemb_r1.training.adaptive.run",
        "EvaluatorConfig": "mmemb_r1.training.selection.evaluator_trainer",
        "EvaluatorTrainer": "mmemb_r1.training.selection.evaluator_trainer",
        "GateConfig": "mmemb_r1.training.gate_phase",
        "JointConfig": "mmemb_r1.training.joint.config",
        "JointRun": "mmemb_r1.training.joint.run",
        "JointTrainer": "mmemb_r1.training.joint.trainer",
        "SelectionOptions": "mmemb_r1.training.selection.config",
        "draw_rationales": "mmemb_r1.training.rationales.draw",
        "load_evaluator": "mmemb_r1.training.selection.evaluator",
        "load_pool": "mmemb_r1.training.rationales.pool",
        "read_pairs": "mmemb_r1.training.tables",
        "read_rationales": "mmemb_r1.training.rationales.table",
        "select_rationales": "mmemb_r1.training.selection.select",
        "train_adaptive": "mmemb_r1.training.adaptive.run",
        "train_gate": "mmemb_r1.training.gate_phase",
        "train_joint": "mmemb_r1.training.joint.run",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
