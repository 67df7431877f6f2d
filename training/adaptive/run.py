"""Run the adaptive phase on tables in files: the one call behind `mmemb-r1 train adaptive`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mmemb_r1.training.adaptive.config import AdaptiveGRPOConfig
from mmemb_r1.training.adaptive.trainer import AdaptiveGRPOTrainer
from mmemb_r1.training.run import PhaseRun, train_phase
from mmemb_r1.training.tables import PAIR_COLUMNS

if TYPE_CHECKING:
    from mmemb_r1.tables.pairs import Source

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AdaptiveRun(PhaseRun):
    """
    Describe an adaptive phase.

    Args:
        joint_pairs: what the joint phase was trained on: its targets are negatives too.
        eval_pairs: a table of other pairs, to evaluate on.
    """

    joint_pairs: Source | None = None
    eval_pairs: Source | None = None

    config_class: ClassVar[type] = AdaptiveGRPOConfig


def train_adaptive(run: AdaptiveRun, notify: Callable[[str], None] = logger.info) -> dict[str, float]:
    """
    Run an adaptive phase, or go on with one that was stopped, and save the checkpoint in `run.output / "model"`.

    `notify` is called in the main process with what is good to know.

    Returns:
        What was measured on `run.eval_pairs`, name -> value; nothing without them.

    Raises:
        ValueError: if a table or the checkpoint is not what it has to be, the folder holds another run, or a reward is
            not finite.
    """
    config = run.config()
    pairs = run.read_pairs(PAIR_COLUMNS)
    joint_pairs = run.read_other_pairs(run.joint_pairs) if run.joint_pairs else None
    eval_pairs = run.read_other_pairs(run.eval_pairs, PAIR_COLUMNS) if run.eval_pairs else None
    module = run.load(config.device)
    model = module.model.train()
    if (adapters := run.peft_config(model)) is not None:
        from mmemb_r1.training.adapters import with_adapters

        model = with_adapters(model, adapters, seed=config.seed)
    trainer = AdaptiveGRPOTrainer(
        model=model,
        args=config,
        train_dataset=pairs,
        processing_class=module.processor,
        eval_dataset=eval_pairs,
        joint_pairs=joint_pairs,
    )
    return train_phase(trainer, run, notify, evaluates=eval_pairs is not None)
