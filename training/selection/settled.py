"""Settle which pairs and rationales are scored."""

from __future__ import annotations

import dataclasses

from datasets import Dataset

from mmemb_r1.training.selection.evaluator import PairEvaluator
from mmemb_r1.training.settling.faults import SettleOptions
from mmemb_r1.training.settling.reading import Reading
from mmemb_r1.training.settling.settle import PairsTable, Settlement, settle
from mmemb_r1.training.tables import StoredValues, positions_in, stored_column


def settle_selection(
    pairs: Dataset, rationales: Dataset, evaluator: PairEvaluator, options: SettleOptions, progress: bool | None = None
) -> Settlement:
    """
    Read all that an evaluator is going to read, see [`~mmemb_r1.training.settling.settle.settle`].

    An evaluator that has no `reading` (a [`Reading`]) has its inputs opened, and no lengths counted; its
    `context_length` is the default of `max_input_tokens`. Rationales of pairs that are left out are left out, too.
    """
    options = options.within(getattr(evaluator, "context_length", None))
    reading = getattr(evaluator, "reading", None) or Reading(None)
    settled = settle([PairsTable(pairs)], reading, options, rationales, progress=progress)
    (kept,) = settled.tables
    if settled.rationales is not None and len(kept) < len(pairs):
        ids = stored_column(settled.rationales, "pair_id")
        known, left = (positions_in(ids, StoredValues(table, "pair_id")) >= 0 for table in (pairs, kept))
        used = (left | ~known).nonzero()[0]  # those of unknown pairs stay: they are an error
        settled = dataclasses.replace(settled, rationales=settled.rationales.select(used))
    return settled
