"""What comes after a prompt, as token ids, and appending it to prompts that a processor rendered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import ProcessorMixin

from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config
from mmemb_r1.modeling.tokens_mmemb_r1 import as_plain_text, control_strings

NUM_CONTROL_TOKENS = 3  # of a thought, beside those of the rationale itself


def thought_ids(processor: ProcessorMixin, config: MMEmbR1Config, rationale: str) -> list[int]:
    """`<think> r </think> <|embed|>`, as if the model had thought it; control strings in r become plain text."""
    text = as_plain_text(rationale, control_strings(processor))
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return as_thought(config, ids)


def as_thought(config: Any, ids: Iterable[int]) -> list[int]:
    """`<think> ids </think> <|embed|>`."""
    return [config.think_token_id, *ids, config.end_think_token_id, config.embed_token_id]


def append_tokens(
    batch: Mapping[str, Any], suffixes: Sequence[Sequence[int]], pad_token_id: int, padding_side: str = "right"
) -> dict[str, Any]:
    """
    Append token ids to the prompts of a batch.

    Args:
        batch: what the processor returned; tensors of the shape of `input_ids` `(B, S)` are per token.
        suffixes: ids of plain text or control tokens per row, possibly none.
        pad_token_id: fills up rows.
        padding_side: `"right"` or `"left"`.

    Returns:
        The batch with rows one after another without gaps, `(B, S')`; media are left as they are.
    """
    shape, mask = batch["input_ids"].shape, batch["attention_mask"].bool()
    tails = [torch.tensor(suffix, dtype=torch.long) for suffix in suffixes]
    result = dict(batch)
    for key, value in batch.items():
        if not isinstance(value, Tensor) or value.shape != shape:
            continue
        extra = {"input_ids": None, "attention_mask": 1}.get(key, 0)  # suffixes are plain text: token type 0
        rows = [
            torch.cat([row[keep], tail.to(row.dtype) if extra is None else row.new_full((len(tail),), extra)])
            for row, keep, tail in zip(value, mask, tails, strict=True)
        ]
        fill = pad_token_id if key == "input_ids" else 0
        result[key] = pad_sequence(rows, batch_first=True, padding_value=fill, padding_side=padding_side)
    return result
