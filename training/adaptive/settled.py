"""Settle which pairs the adaptive phase trains on."""

from __future__ import annotations

import dataclasses
from typing import Any

from datasets import Dataset
from transformers import ProcessorMixin

from mmemb_r1.rationale_tokens import NUM_CONTROL_TOKENS
from mmemb_r1.training.adaptive.config import AdaptiveGRPOConfig
from mmemb_r1.training.settling.reading import Reading, context_length
from mmemb_r1.training.settling.settle import PairsTable, Settlement, settle


def settle_adaptive(
    args: AdaptiveGRPOConfig, config: Any, processor: ProcessorMixin, train: Dataset, joint_pairs: Dataset | None
) -> Settlement:
    """
    Read all that an adaptive phase is going to read, see [`~mmemb_r1.training.settling.settle.settle`].

    Args:
        args: its config.
        config: the model's, an `MMEmbR1Config`.
        processor: the model's.
        train: the pairs to train on. After their queries there has to be room for all rounds of reasoning.
        joint_pairs: the pairs, if any, whose targets are negatives.
    """
    rounds = args.max_reasoning_rounds or config.max_reasoning_rounds
    drawn = rounds * ((args.max_reasoning_tokens or config.max_reasoning_tokens) + NUM_CONTROL_TOKENS)
    tables = [PairsTable(train, no_videos=("query",), after={"query": drawn})]
    if joint_pairs is not None:
        tables.append(PairsTable(joint_pairs, "the pairs of the joint phase", ("target",)))
    options = args.settle_options
    if options.max_input_tokens is None:
        options = dataclasses.replace(options, max_input_tokens=context_length(config))
    return settle(tables, Reading.of(processor, config), options)
