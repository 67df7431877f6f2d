"""Show rollouts in tables: what was decided, what the gate thought of it, what was written, and what that gained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers.integrations import TensorBoardCallback

from mmemb_r1.training.adaptive.advantages import strata

SHOWN = ("pair_id", "decision", "gate_probability", "gain", "rationale")  # beside TRL's columns
LONGEST = 300  # characters of a cell of a text table


def table_columns(
    inputs: Sequence[Mapping[str, Any]], texts: Sequence[str], values: Tensor, reasoned: Tensor, probs: Tensor
) -> dict[str, list[Any]]:
    """
    Make the columns that a table of rollouts has beside TRL's.

    Args:
        inputs: N * G rows with `pair_id`.
        texts: their rationales, empty for direct embeddings.
        values: `(N, G)` of the target, by the measure that is rewarded.
        reasoned: `(N, G)` bool.
        probs: `(N,)` the gate's probability of reasoning.

    Returns:
        `pair_id`; `decision`; `gate_probability` of that decision; `gain`, by how much the target is better off than
        with the group's direct embedding, `None` where there is none; `rationale`.
    """
    direct = strata(values, reasoned)[1][:, :1]  # (N, 1), NaN where a group has none
    gains = (values - direct).flatten().tolist()
    chosen = (reasoned * probs[:, None] + ~reasoned * (1 - probs)[:, None]).flatten().tolist()
    thinks = reasoned.flatten().tolist()
    return {
        "pair_id": [row["pair_id"] for row in inputs],
        "decision": ["reasoned" if one else "direct" for one in thinks],
        "gate_probability": chosen,
        "gain": [None if gain != gain else gain for gain in gains],
        "rationale": list(texts),
    }


def text_table(columns: Mapping[str, Sequence[Any]], rows: int) -> str:
    """
    Write the first rows of a table in Markdown.

    >>> print(text_table({"decision": ["direct"], "gain": [0.125]}, 5))
    | decision | gain |
    | --- | --- |
    | direct | 0.125 |
    """

    def cell(value: Any) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str("" if value is None else value)
        return " ".join(text.split())[:LONGEST].replace("|", "\\|")

    lines = [list(columns), ["---"] * len(columns), *list(zip(*columns.values(), strict=True))[:rows]]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def show_in_tensorboard(trainer: Any, columns: Mapping[str, Sequence[Any]], rows: int) -> None:
    """Write a table as text where a trainer reports to TensorBoard, for which TRL has none."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_text("completions", text_table(columns, rows), trainer.state.global_step)
