"""Settle which pairs and rationales the joint phase trains on."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import ProcessorMixin

from mmemb_r1.modeling.options_mmemb_r1 import context_length
from mmemb_r1.training.joint.config import JointConfig
from mmemb_r1.training.settling.reading import Reading
from mmemb_r1.training.settling.settle import OWN_RATIONALES, PairsTable, Settlement, settle


def settle_joint(
    args: JointConfig,
    config: Any,
    processor: ProcessorMixin,
    train: Dataset,
    other: Dataset | None = None,
    rationales: Dataset | None = None,
) -> Settlement:
    """
    Read all that a joint phase is going to read, see [`~mmemb_r1.training.settling.settle.settle`].

    Args:
        args: its config.
        config: the model's, an `MMEmbR1Config`.
        processor: the model's.
        train, other: the pairs to train on, and those, if any, to evaluate on.
        rationales: the selected ones, if any, in place of those in `train`.
    """
    negatives = ("negatives",) if args.num_hard_negatives else ()
    own = OWN_RATIONALES if args.use_rationales else {}
    sides = own if rationales is None else {}
    tables = [PairsTable(train, inputs=("query", "target", *negatives), rationales=sides)]
    if other is not None:
        tables.append(PairsTable(other, "the evaluation table", ("query", "target"), own))
    options = args.settle_options.within(context_length(config))
    reading = Reading.of(processor, config, args.max_reasoning_rounds)
    return settle(tables, reading, options, rationales if args.use_rationales else None)
