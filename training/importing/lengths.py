"""Tell how long imported rationales are in the tokens of a model, before it is trained on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module
from mmemb_r1.training.rationales.table import read_rationales
from mmemb_r1.training.settling.faults import SettleOptions, described, rationale_faults
from mmemb_r1.training.settling.measure import Columns, measure_table
from mmemb_r1.training.settling.reading import Reading
from mmemb_r1.training.settling.report import PERCENTILES, percentiles
from mmemb_r1.training.settling.settle import FOLDER
from mmemb_r1.training.tables import plain_column
from mmemb_r1.training.vlm import checkpoint_config


def lengths_text(path: Path, model: str, longest: int) -> str:
    """
    Measure a table of rationales, and tell the percentiles of its lengths and which are too long.

    Args:
        path: the table's folder.
        model: a checkpoint: a folder or a Hub id.
        longest: tokens of a rationale that is not too long.
    """
    checkpoint_config(model)
    module = MMEmbR1Module.load(model, local_files_only=Path(model).is_dir())
    table = read_rationales(path)
    reading = Reading.of(module.processor, module.model.config)
    lengths = measure_table(table, Columns(rationales=("text",)), reading, FOLDER, name="the rationales")
    shown = percentiles(lengths.longest["text"])
    told = ", ".join(f"{at} % {length:,}" for at, length in zip(PERCENTILES, shown, strict=True))
    names = table.select_columns(["pair_id", "side"])
    faults = rationale_faults(
        "the rationales",
        lengths,
        "text",
        np.zeros(len(table), np.int32),
        SettleOptions(max_rationale_tokens=longest),
        lambda row: (names[row]["pair_id"], names[row]["side"]),
        plain_column(table, "worker"),
    )
    return f"tokens of the rationales, percentiles: {told}\n{described(faults)}".rstrip()
