"""Yes and no, as tokens and as a logit."""

from __future__ import annotations

import math

import pytest
import torch

from mmemb_r1.training.selection.vlm_evaluator import answer_ids, match_logit


class Words:
    """A tokenizer that knows some words and spells the others letter by letter, a space apart."""

    def __init__(self, *words):
        self.words = words

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [self.words.index(text)] if text in self.words else [1000 + ord(text[0])]}


def test_every_spelling_counts():
    yes, no = answer_ids(Words("yes", " yes", "Yes", " no", "NO"))
    assert {0, 1, 2} <= set(yes) and {3, 4} <= set(no)
    assert 1000 + ord(" ") not in yes + no, "a space of its own says nothing"
    assert 1000 + ord("Y") in yes and 1000 + ord("n") in no, "a word in pieces begins with its first one"


def test_real_tokenizer(processor):
    yes, no = answer_ids(processor.tokenizer)
    assert yes and no and not set(yes) & set(no)
    assert all(processor.tokenizer.decode([id_]).strip().lower() in "yes" for id_ in yes)


def test_a_tokenizer_that_cannot_tell_is_refused():
    class Same(Words):
        def __call__(self, text, add_special_tokens):
            return {"input_ids": [7]}

    with pytest.raises(ValueError, match="begins 'yes' and 'no' with the same tokens"):
        answer_ids(Same())


def test_match_logit_sums_over_spellings():
    probabilities = torch.tensor([[0.1, 0.3, 0.2, 0.4]])
    logit = match_logit(probabilities.log() + 5, [0, 1], [2])  # whatever is added to all logits
    assert logit.item() == pytest.approx(math.log(0.4 / 0.2), rel=1e-5)
    assert match_logit(probabilities.to(torch.bfloat16), [0], [1]).dtype == torch.float32
