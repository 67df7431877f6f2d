"""Settle which pairs the adaptive phase trains on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import ProcessorMixin

from mmemb_r1.modeling.options_mmemb_r1 import context_length
from mmemb_r1.modeling.paths_mmemb_r1 import num_control_tokens
from mmemb_r1.training.adaptive.config import AdaptiveGRPOConfig
from mmemb_r1.training.adaptive.sides import with_sides
from mmemb_r1.training.settling.reading import Reading
from mmemb_r1.training.settling.settle import PairsTable, Settlement, settle
from mmemb_r1.training.tables import PAIR_COLUMNS, check_pairs


def settled_tables(
    args: AdaptiveGRPOConfig, config: Any, processor: ProcessorMixin, tables: Mapping[str, Dataset | None]
) -> tuple[Settlement, dict[str, Dataset | None]]:
    """
    Turn the pairs of the tables `train`, `joint` and `eval`, as far as they are there, to the sides that reason, check
    them, and settle which rows are used.

    Returns:
        What was settled, and the rows that are used of each table.

    Raises:
        ValueError: if a table is not what it has to be, or rows are refused.
    """
    given = {name: with_sides(table, args.sides) for name, table in tables.items() if table is not None}
    for name in {"train", "eval"}.intersection(given):
        check_pairs(given[name], PAIR_COLUMNS, "the pairs table" if name == "train" else "the table to evaluate on")
    settlement = settle_adaptive(args, config, processor, given["train"], given.get("joint"), given.get("eval"))
    kept = dict(zip([name for name in ("train", "joint", "eval") if name in given], settlement.tables, strict=True))
    return settlement, {name: kept.get(name) for name in tables}


def settle_adaptive(
    args: AdaptiveGRPOConfig,
    config: Any,
    processor: ProcessorMixin,
    train: Dataset,
    joint_pairs: Dataset | None = None,
    held_out: Dataset | None = None,
) -> Settlement:
    """
    Read all that an adaptive phase is going to read, see [`~mmemb_r1.training.settling.settle.settle`].

    Args:
        args: its config.
        config: the model's, an `MMEmbR1Config`.
        processor: the model's.
        train: the pairs to train on. After their queries there has to be room for all rounds of reasoning.
        joint_pairs: the pairs, if any, whose targets are negatives.
        held_out: those to evaluate on, if any.
    """
    rounds = args.max_reasoning_rounds or config.max_reasoning_rounds
    drawn = rounds * ((args.max_reasoning_tokens or config.max_reasoning_tokens) + num_control_tokens(config))
    tables = [PairsTable(train, after={"query": drawn})]
    if joint_pairs is not None:
        tables.append(PairsTable(joint_pairs, "the pairs of the joint phase", ("target",)))
    if held_out is not None:
        tables.append(PairsTable(held_out, "the table to evaluate on", after={"query": drawn}))
    options = args.settle_options.within(context_length(config))
    return settle(tables, Reading.of(processor, config), options)
