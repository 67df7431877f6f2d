"""Select from scores, in any way: the same scores serve all `SelectionOptions`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mmemb_r1.file_formats import read_parquet
from mmemb_r1.runs import replaced_file
from mmemb_r1.training.selection.config import SelectionOptions
from mmemb_r1.training.selection.gain import confidence, corrected_gain, marginal_gain, posterior, scaled
from mmemb_r1.training.selection.scores import SCHEMA
from mmemb_r1.training.tables import SELECTION_NOTE

NOT_KEPT = "gain"
SELECTED, CANDIDATES = "selected.parquet", "candidates.parquet"
SCORED_AGAIN = "Remove it; `mmemb-r1 select` then scores its pairs again."
_ROW_GROUP = 65_536  # rows; shards are far smaller, and a file of as many row groups is slow to open
_SELECTION_COLUMNS = ("confidence_with", "confidence_without", "gain", "posterior")


def gains(scores: pa.Table, options: SelectionOptions) -> Tensor:
    """
    Compute what is compared with the margin: `(N,)` float32, NaN where a rationale was not scored. Of one that was
    given up early, it is the gain before the correction, which can't be kept either.
    """
    with_, without = (_logits(scores[f"logit_{name}"]) for name in ("with", "without"))  # (N,)
    wrong_with, wrong_without = (_negatives(scores[f"negatives_{name}"]) for name in ("with", "without"))  # (M, N)
    if options.selection == "absolute":
        gain, wrong = scaled(with_, options.space), scaled(wrong_with, options.space)
    else:
        gain = marginal_gain(with_, without, options.space)
        wrong = marginal_gain(wrong_with, wrong_without, options.space)
    return corrected_gain(gain, wrong.nan_to_num(nan=0.0)) if options.wrong_pair_correction else gain


def with_selection(scores: pa.Table, options: SelectionOptions) -> pa.Table:
    """
    Select from a table of scores.

    Args:
        scores: whole groups (all rationales of one side of one pair stand together).
        options: how to select.

    Returns:
        The rationales' columns, `confidence_with`, `confidence_without`, `gain` (null where a rationale was not
        scored), `posterior` (its weights sum to 1 over the kept ones of a group, others have 0), `kept` and, for
        those not kept, `reason`.
    """
    gain = gains(scores, options)
    keeps_all = options.selection == "none"
    margin, temperature = (-torch.inf, torch.inf) if keeps_all else (options.margin_used, options.temperature_used)
    sizes = np.diff([*group_starts(scores), len(scores)]).tolist()
    parts = [posterior(part, margin, temperature) for part in gain.split(sizes)]
    weights, kept = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    reason = pc.if_else(pa.array(kept.numpy()), None, pc.coalesce(scores["unusable"], pa.scalar(NOT_KEPT)))
    confidences = [confidence(_logits(scores[f"logit_{name}"])) for name in ("with", "without")]
    table = scores.drop_columns(SCHEMA.names)
    for name, values in zip(_SELECTION_COLUMNS, [*confidences, gain, weights], strict=True):
        table = table.append_column(name, pa.array(values.numpy(), pa.float32(), mask=values.isnan().numpy()))
    return table.append_column("kept", pa.array(kept.numpy())).append_column("reason", reason)


def write_tables(
    shards: Sequence[Path], folder: Path, options: SelectionOptions, evaluator: Mapping[str, Any]
) -> None:
    """
    Write `candidates.parquet` (all rows) and `selected.parquet` (the kept ones), some shards at a time; how they were
    selected, with an evaluator of this definition, is in the metadata of the latter.
    """
    counts = [0, 0]
    with ExitStack() as stack:
        paths = [stack.enter_context(replaced_file(folder / name)) for name in (CANDIDATES, SELECTED)]
        writers: list[pq.ParquetWriter] = []
        for scores in _gathered(shards):
            candidates = with_selection(scores, options)
            selected = candidates.filter(candidates["kept"]).drop_columns(["kept", "reason"])
            tables = [candidates, selected]
            if not writers:
                writers = [
                    stack.enter_context(pq.ParquetWriter(path, table.schema))
                    for path, table in zip(paths, tables, strict=True)
                ]
            for place, (writer, table) in enumerate(zip(writers, tables, strict=True)):
                writer.write_table(table)
                counts[place] += len(table)
        if writers:
            note = f"{counts[1]:,} of {counts[0]:,} rationales kept; {selection_note(options, evaluator)}"
            writers[1].add_key_value_metadata({SELECTION_NOTE: note})


def selection_note(options: SelectionOptions, evaluator: Mapping[str, Any]) -> str:
    """
    Say in words how rationales are selected, for whoever trains on them.

    >>> selection_note(SelectionOptions(wrong_pair_correction=False), {"kind": "vlm", "model": "judge"})
    'counterfactual (drop), gain > 0 in probability, seed 0; evaluator: vlm, judge'
    """
    how = options.selection
    if how != "none":
        how += f" ({options.intervention})" if how == "counterfactual" else ""
        how += f", gain > {options.margin_used:g} in {options.space}"
        how += f", corrected by {options.num_negatives} wrong pairs" if options.wrong_pair_correction else ""
    whose = [str(evaluator[name]) for name in ("kind", "model") if name in evaluator]
    whose += [f"weights {evaluator['weights']}"] if "weights" in evaluator else []
    return f"{how}, seed {options.seed}; evaluator: {', '.join(whose) or 'not named'}"


def _gathered(shards: Sequence[Path]) -> Iterator[pa.Table]:
    """Read the shards, several of them as one table."""
    tables: list[pa.Table] = []
    for shard in shards:
        tables.append(read_parquet(shard, hint=SCORED_AGAIN))
        if sum(map(len, tables)) >= _ROW_GROUP:
            yield pa.concat_tables(tables)
            tables = []
    if tables:
        yield pa.concat_tables(tables)


def group_starts(table: pa.Table) -> npt.NDArray[np.int64]:
    """Find the groups, rows of one side of one pair, which stand together: `(G,)` the first row of each."""
    ids, sides = (table[name].to_numpy() for name in ("pair_id", "side"))
    begins = (ids[1:] != ids[:-1]) | (sides[1:] != sides[:-1])
    return np.flatnonzero(np.concatenate([[True] * (len(ids) > 0), begins]))


def _logits(column: pa.ChunkedArray) -> Tensor:
    """Convert to `(N,)` float32, NaN for null."""
    return torch.from_numpy(column.to_numpy().astype(np.float32))


def _negatives(column: pa.ChunkedArray) -> Tensor:
    """Convert lists of M logits to `(M, N)` float32, NaN for null."""
    there = column.is_valid().to_numpy()
    flat = pc.list_flatten(column).to_numpy()
    logits: npt.NDArray[np.float32] = np.full((len(there), len(flat) // max(there.sum(), 1)), np.nan, np.float32)
    logits[there] = flat.reshape(there.sum(), logits.shape[1])
    return torch.from_numpy(logits.T)
