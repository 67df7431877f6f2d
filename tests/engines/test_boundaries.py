"""Ids that are sent as text come back as the same ids, whatever a model wrote."""

from __future__ import annotations

import random

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from mmemb_r1.engines.boundaries import BOUNDARY, text_of, with_boundaries
from mmemb_r1.tiny import build_tiny_vlm

TEXTS = ["What is the capital of Peru?", "  two\n\nlines, 12 345 ", "Ünïcödé 你好 🙂", "<|im_start|>user", ""]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tiny_vlm("qwen3_vl")[1].tokenizer


def test_any_ids_of_whole_characters_come_back(tokenizer):
    cut, rng = with_boundaries(tokenizer), random.Random(0)
    ascii_ids = [number for number in range(len(tokenizer)) if tokenizer.decode([number]).isascii()]
    assert len(ascii_ids) > 100
    needed = 0
    for length in range(1, 200):
        ids = rng.choices(ascii_ids, k=length)
        text, is_exact = text_of(cut, ids)
        assert is_exact
        assert cut(text, add_special_tokens=False)["input_ids"] == ids
        assert text.replace(BOUNDARY, "") == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        needed += BOUNDARY in text
    assert needed > 50


def test_text_is_sent_as_it_is_and_halves_of_characters_are_told(tokenizer):
    cut = with_boundaries(tokenizer)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert cut(text, add_special_tokens=False)["input_ids"] == ids  # texts without boundaries are cut as before
        assert text_of(cut, ids) == (tokenizer.decode(ids, clean_up_tokenization_spaces=False), True)
    smile = tokenizer("🙂", add_special_tokens=False)["input_ids"]
    assert len(smile) > 1
    assert text_of(cut, [*smile, *smile])[1]
    assert not text_of(cut, smile[:-1])[1]


@pytest.mark.parametrize("kind", [PreTrainedTokenizerFast, Qwen2Tokenizer])
def test_the_tokenizer_of_an_export_is_loaded_with_its_boundaries(tokenizer, tmp_path, kind):
    """A family's own class would make its pre-tokenizer anew."""
    tokenizer.save_pretrained(tmp_path / "before")
    tokenizer = kind.from_pretrained(tmp_path / "before")
    with_boundaries(tokenizer).save_pretrained(tmp_path)
    build_tiny_vlm("qwen3_vl")[0].config.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    text = BOUNDARY.join("capital")
    assert len(loaded(text, add_special_tokens=False)["input_ids"]) == len("capital")
    assert len(tokenizer("capital", add_special_tokens=False)["input_ids"]) < len("capital")
