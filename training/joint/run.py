"""Run the joint phase on tables in files: the one call behind `mmemb-r1 train joint`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from datasets import Dataset

from mmemb_r1.training.joint.config import JointConfig
from mmemb_r1.training.joint.data import shared_ids
from mmemb_r1.training.joint.trainer import JointTrainer
from mmemb_r1.training.run import PhaseRun, train_phase
from mmemb_r1.training.tables import read_selection_note

if TYPE_CHECKING:
    from mmemb_r1.tables.pairs import Source

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JointRun(PhaseRun):
    """
    Describe a joint phase. Settings that do not go together are a `ValueError`.

    Args:
        rationales: `selected.parquet` of `mmemb-r1 select`, in place of the rationales in the pairs table.
        eval_pairs: a table of other pairs, to measure the loss on.
    """

    rationales: Path | None = None
    eval_pairs: Source | None = None

    config_class: ClassVar[type] = JointConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.lora or {}).get("adapt_vision_tower") and self.settings.get("freeze_vision_tower"):
            raise ValueError("lora.adapt_vision_tower trains what freeze_vision_tower freezes; leave out one")
        if self.rationales is not None and not self.settings.get("use_rationales", True):
            raise ValueError(f"rationales {self.rationales} would not be used: use_rationales is false; leave out one")

    def told(self) -> dict[str, Any]:
        told = super().told()
        if self.rationales is not None:
            told["selection"] = read_selection_note(self.rationales) or "not recorded in the rationales table"
        return told


def train_joint(run: JointRun, notify: Callable[[str], None] = logger.info) -> dict[str, float]:
    """
    Run a joint phase, or go on with one that was stopped, and save the trained checkpoint in `run.output / "model"`.

    `notify` is called in the main process with what is good to know before a long training.

    Returns:
        What was measured on `run.eval_pairs`, name -> value; nothing without them.

    Raises:
        ValueError: if a table or the checkpoint is not what it has to be, or the folder holds another run.
        FloatingPointError: if a loss is not finite.
    """
    config = run.config()
    # tables first: what is wrong with them should not wait for a model
    pairs = run.read_pairs()
    rationales = run.read_table(run.rationales) if run.rationales else None
    eval_pairs = run.read_other_pairs(run.eval_pairs) if run.eval_pairs else None
    module = run.load(config.device)
    trainer = JointTrainer(
        model=module.model.train(),
        args=config,
        train_dataset=pairs,
        processing_class=module.processor,
        eval_dataset=eval_pairs,
        rationales=rationales,
        peft_config=run.peft_config(module.model),
    )
    if trainer.is_fsdp_enabled and run.lora is not None and module.model.config.tie_word_embeddings:
        raise ValueError(
            "FSDP can't shard adapters on a model whose input and output embeddings are one tensor; leave FSDP out: "
            "accelerate launch --multi_gpu shares the pairs among GPUs, and adapters need little memory"
        )
    if rationales is not None and trainer.is_world_process_zero():
        notify(f"{run.rationales}: {describe_rationales(pairs, rationales)}")
    return train_phase(trainer, run, notify, evaluates=eval_pairs is not None)


def describe_rationales(pairs: Dataset, rationales: Dataset) -> str:
    """Tell how many pairs have a selected rationale, and which columns of the pairs are not read for it."""
    count, _ = shared_ids(rationales, pairs)
    text = f"rationales for {count:,} of {len(pairs):,} pairs; the others train the direct path alone"
    own = [name for name in ("query_rationale", "target_rationale") if name in pairs.column_names]
    if not own:
        return text
    return f"{text}. They replace the column{'s' if len(own) > 1 else ''} {' and '.join(own)} of the pairs"
