"""Prompts that are read once: any continuation has the logits of the whole sequence read at a stretch."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.rationale_tokens import append_tokens
from mmemb_r1.tiny import FAMILIES, build_tiny_vlm
from mmemb_r1.training.shared_prefix import Prefix, branch, extend, read_prefix, suffix_logits

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHT_SCALE = 8.0  # the random models are nearly linear otherwise, and wrong positions would hardly be noticed


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


TEXTS = ["What is the capital of Peru?", "a dog"]
PICTURE = [{"text": "What is this?", "image": picture(0, 100, 50)}]
PICTURES = [{"text": "Which of the two is larger?", "image": [picture(1), picture(2, 37, 50)]}]
MIXED = [*PICTURES, *TEXTS, *PICTURE]
SUFFIXES = ["The digits are 3, 5, 7.", " a", "", "Lima. It is the flag of Chad?", "Describe"]


@cache
@torch.no_grad()
def tiny(family: str) -> tuple[Any, Any]:
    vlm, processor = build_tiny_vlm(family)
    for parameter in vlm.parameters():
        if parameter.ndim > 1:
            parameter.mul_(WEIGHT_SCALE)
    return vlm, processor


@pytest.fixture(params=FAMILIES)
def model(request) -> tuple[Any, Any]:
    return tiny(request.param)


def prompts(processor: Any, inputs: list[Any]) -> dict[str, Any]:
    return dict(render(processor, to_conversations(inputs)))


def tokens(processor: Any, texts: list[str]) -> list[list[int]]:
    return [processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@torch.no_grad()
def unshared(vlm: Any, processor: Any, value: Any, suffix: list[int]) -> Tensor:
    """Logits `(V,)` after one prompt and its suffix, read in one pass, alone and without a cache."""
    batch = append_tokens(prompts(processor, [value]), [suffix], pad_token_id=0)
    return vlm(**batch, use_cache=False).logits[0, -1]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inputs", [TEXTS, PICTURE, PICTURES, MIXED], ids=["text", "picture", "pictures", "mixed"])
def test_every_continuation_is_that_of_the_whole(model, inputs):
    """Branches in any order, left out or repeated, extended twice by suffixes of different length."""
    vlm, processor = model
    prefix = read_prefix(vlm, prompts(processor, inputs))
    for row, value in enumerate(inputs):
        assert_close(prefix.logits[row], unshared(vlm, processor, value, []))
    rows = [len(inputs) - 1, 0, 0, len(inputs) - 1]
    first, second = (
        tokens(processor, SUFFIXES[:1] + SUFFIXES[3:] + SUFFIXES[1:2]),
        tokens(processor, SUFFIXES[-2:] * 2),
    )
    branches = branch(prefix, torch.tensor(rows))
    for tails, wholes in ((first, first), (second, [one + other for one, other in zip(first, second, strict=True)])):
        branches = extend(vlm, branches, *padded(tails))
        for row, suffix, logits in zip(rows, wholes, branches.logits, strict=True):
            assert_close(logits, unshared(vlm, processor, inputs[row], suffix))
    assert len(branches) == len(rows)
    assert branches.logits.dtype == torch.float32


def test_suffixes_are_scored_in_their_order(model):
    vlm, processor = model
    prefix = read_prefix(vlm, prompts(processor, MIXED))
    rows = [row for row in range(len(MIXED)) for _ in SUFFIXES]
    suffixes = tokens(processor, SUFFIXES) * len(MIXED)
    expected = torch.stack(
        [unshared(vlm, processor, MIXED[row], suffix) for row, suffix in zip(rows, suffixes, strict=True)]
    )
    for batch_size in (64, 3):
        assert_close(suffix_logits(vlm, prefix, rows, suffixes, batch_size), expected)


def test_logits_depend_on_prompt_and_suffix(model):
    """Otherwise the comparisons above would hold for anything."""
    vlm, processor = model
    prefix = read_prefix(vlm, prompts(processor, [*PICTURE, {**PICTURE[0], "image": picture(9, 100, 50)}]))
    a, b = tokens(processor, ["Lima", "Peru"])
    logits = suffix_logits(vlm, prefix, [0, 1, 0], [a, a, b])
    assert (logits[0] - logits[1]).abs().max() > 1e-2
    assert (logits[0] - logits[2]).abs().max() > 1e-2


def test_videos():
    vlm, processor = tiny("qwen3_vl")
    value = {"video": [picture(seed) for seed in range(4)], "text": "What is this?"}
    (suffix,) = tokens(processor, SUFFIXES[:1])
    prefix = read_prefix(vlm, prompts(processor, ["a", value, *PICTURE]))
    assert_close(suffix_logits(vlm, prefix, [1], [suffix])[0], unshared(vlm, processor, value, suffix))


def test_a_branch_leaves_the_prefix_as_it_was(model):
    vlm, processor = model
    prefix = read_prefix(vlm, prompts(processor, TEXTS))
    before = [(layer.keys.clone(), layer.values.clone()) for layer in prefix.cache.layers]
    length, ids = prefix.cache.get_seq_length(), torch.tensor([[5, 6], [7, 8]])
    expected = extend(vlm, branch(prefix, torch.arange(2)), ids).logits
    branch(prefix, torch.tensor([1])).select(torch.tensor([0]))
    assert prefix.cache.get_seq_length() == length == prefix.mask.shape[1]
    for layer, (keys, values) in zip(prefix.cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values)
    assert torch.equal(extend(vlm, branch(prefix, torch.arange(2)), ids).logits, expected)


def test_media_are_encoded_once(monkeypatch):
    vlm, processor = tiny("qwen3_vl")
    calls = []
    forward = type(vlm).forward
    monkeypatch.setattr(
        type(vlm), "forward", lambda self, **kwargs: calls.append("pixel_values" in kwargs) or forward(self, **kwargs)
    )
    prefix = read_prefix(vlm, prompts(processor, PICTURE))
    suffix_logits(vlm, prefix, [0] * 8, tokens(processor, ["a", "b"]) * 4)
    assert calls == [True, False]


def windowed(window: int) -> tuple[Any, Any]:
    vlm, processor = build_tiny_vlm("gemma3", num_layers=3)
    with torch.no_grad():
        for parameter in vlm.parameters():
            if parameter.ndim > 1:
                parameter.mul_(WEIGHT_SCALE)
    vlm.config.text_config.sliding_window = window
    for layer in vlm.model.language_model.layers:
        if layer.self_attn.is_sliding:
            layer.self_attn.sliding_window = window
    return vlm, processor


def test_sliding_windows():
    """Tokens beyond the window are out of sight, padding does not use it up; what can't be right is refused."""
    window = 16
    vlm, processor = windowed(window)
    prefix = read_prefix(vlm, prompts(processor, MIXED))
    assert prefix.mask.shape[1] > window > prefix.mask.sum(dim=1).min()
    suffixes = tokens(processor, SUFFIXES[:4])
    with pytest.raises(ValueError, match="padding inside.*window of 16.*suffix_logits"):
        extend(vlm, branch(prefix, torch.arange(4)), *padded([suffix or [1] for suffix in suffixes]))
    expected = torch.stack(
        [unshared(vlm, processor, value, suffix) for value, suffix in zip(MIXED, suffixes, strict=True)]
    )
    assert_close(suffix_logits(vlm, prefix, range(4), suffixes), expected)
    wide, _ = windowed(512)
    assert (unshared(wide, processor, MIXED[0], suffixes[0]) - expected[0]).abs().max() > 1e-2


def test_recurrent_states(recurrent_vlm):
    """Linear attention keeps a state that is changed in place: branches have their own."""
    vlm = recurrent_vlm()
    rows, suffixes = [0, 1, 0, 1], [[1, 2, 3], [4], [5, 6, 7, 8], [1, 2, 3]]
    starts = [[9, 8, 7, 6, 5], [11, 12, 13]]
    with torch.no_grad():
        expected = [
            vlm(input_ids=torch.tensor([starts[row] + suffix]), use_cache=False).logits[0, -1]
            for row, suffix in zip(rows, suffixes, strict=True)
        ]
    prefix = read_prefix(vlm, dict(zip(("input_ids", "attention_mask"), padded(starts), strict=True)))
    with pytest.raises(ValueError, match="padding inside.*recurrent state"):
        extend(vlm, branch(prefix, torch.tensor(rows)), *padded(suffixes))
    for _ in range(2):
        assert_close(suffix_logits(vlm, prefix, rows, suffixes), torch.stack(expected))


def test_padding_inside_is_refused_when_the_window_is_reached_later():
    vlm, processor = windowed(32)
    prefix = read_prefix(vlm, prompts(processor, TEXTS))
    prefix = extend(vlm, prefix, *padded([[5], [6, 7]]))
    with pytest.raises(ValueError, match="padding inside"):
        for _ in range(32):
            prefix = extend(vlm, prefix, torch.tensor([[5], [6]]))


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[1]], None, r"shape \(1, 1\).*2 rows"),
        ([[1, 2], [3, 4]], [[1], [1]], r"a mask of shape \(2, 1\)"),
        ([[1, 2], [3, 4]], [[1, 0], [1, 1]], "padded on the right"),
        ([[], []], None, "empty"),
    ],
)
def test_bad_suffixes(ids, mask, message):
    vlm, processor = tiny("llava")
    prefix = read_prefix(vlm, prompts(processor, TEXTS))
    with pytest.raises(ValueError, match=message):
        extend(vlm, prefix, torch.tensor(ids), None if mask is None else torch.tensor(mask))


def test_prompts_padded_on_the_right_are_refused():
    vlm, _ = tiny("llava")
    batch = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.tensor([[1, 0]])}
    with pytest.raises(ValueError, match="prompts are empty or padded on the right"):
        read_prefix(vlm, batch)


def test_rows_and_suffixes_are_as_many():
    prefix = Prefix(None, torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="1 rows for 2 suffixes"):
        suffix_logits(None, prefix, [0], [[1], [2]])
