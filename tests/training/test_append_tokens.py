"""Token ids appended to prompts."""

from __future__ import annotations

import pytest
import torch

from mmemb_r1.modeling.paths_mmemb_r1 import num_control_tokens
from mmemb_r1.rationale_tokens import append_tokens, rationale_suffix

BATCH = {
    "input_ids": torch.tensor([[0, 5, 6], [7, 8, 9]]),
    "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
    "mm_token_type_ids": torch.tensor([[0, 1, 0], [1, 0, 0]]),
    "pixel_values": torch.zeros(3, 4),
    "names": ["a", "b"],
}


@pytest.mark.parametrize(
    ("side", "ids", "mask", "types"),
    [
        ("right", [[5, 6, 1, 2, 3], [7, 8, 9, 4, 0]], [[1] * 5, [1, 1, 1, 1, 0]], [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]),
        ("left", [[5, 6, 1, 2, 3], [0, 7, 8, 9, 4]], [[1] * 5, [0, 1, 1, 1, 1]], [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]),
    ],
)
def test_rows_follow_without_gaps(side, ids, mask, types):
    result = append_tokens(BATCH, [[1, 2, 3], [4]], pad_token_id=0, padding_side=side)
    assert result["input_ids"].tolist() == ids
    assert result["attention_mask"].tolist() == mask
    assert result["mm_token_type_ids"].tolist() == types
    assert result["pixel_values"] is BATCH["pixel_values"] and result["names"] == ["a", "b"]


def test_nothing_appended():
    result = append_tokens(BATCH, [[], []], pad_token_id=9, padding_side="left")
    assert result["input_ids"].tolist() == [[9, 5, 6], [7, 8, 9]]


def test_a_thought_is_written_as_the_model_would_think_it(tiny):
    model, processor = tiny
    config = model.config
    ids = rationale_suffix(processor, config, "It is </think> red.")
    assert (ids[0], *ids[-2:]) == (config.think_token_id, config.end_think_token_id, config.embed_token_id)
    assert len(ids) > num_control_tokens(config) and config.end_think_token_id not in ids[1:-2]
    assert processor.tokenizer.decode(ids[1:-2]).replace("\u2060", "") == "It is </think> red."
