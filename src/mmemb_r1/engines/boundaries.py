"""Write token ids as a text that a server cuts into the same ids, where no way is left to send the ids themselves."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmemb_r1.modeling.locking_mmemb_r1 import tokenizing

BOUNDARY = "\ufdd0"  # Unicode reserves it for such uses; no text holds it
_LONGEST = 8  # tokens that make up one character at most


def with_boundaries(tokenizer: Any) -> Any:
    """Copy a fast tokenizer; the copy begins a new token wherever a text holds `BOUNDARY`, and drops that."""
    made, backend = copy.deepcopy(tokenizer), Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    cut = pre_tokenizers.Split(BOUNDARY, behavior="removed")
    own = backend.pre_tokenizer
    backend.pre_tokenizer = cut if own is None else pre_tokenizers.Sequence([cut, own])
    made._tokenizer = backend
    made.__class__ = PreTrainedTokenizerFast  # classes of a family make this part anew when they are loaded
    return made


def text_of(tokenizer: Any, ids: Sequence[int]) -> tuple[str, bool]:
    """
    Write ids as a text, with boundaries where their text alone would be cut into others.

    Args:
        tokenizer: from [`with_boundaries`].
        ids: such as a model wrote.

    Returns:
        The text, and whether the tokenizer cuts it into just these ids. It does not where they are no whole text,
        such as a part of a character.
    """
    ids = list(ids)
    with tokenizing():
        if _ids_of(tokenizer, whole := _decoded(tokenizer, ids)) == ids:
            return whole, True
        texts, group = [], []
        for token in ids:
            group.append(token)
            text = _decoded(tokenizer, group)
            if _ids_of(tokenizer, text) == group or len(group) == _LONGEST:
                texts.append(text)
                group = []
        text = BOUNDARY.join([*texts, _decoded(tokenizer, group)] if group else texts)
        return text, _ids_of(tokenizer, text) == ids


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
