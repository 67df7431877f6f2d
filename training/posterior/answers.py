"""Reading yes or no from the logits of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def answer_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """
    Ids of the tokens with which "yes" and with which "no" begin, in any usual spelling, after a space or not.

    Raises:
        ValueError: if the two can't be told apart by their first token.
    """
    yes, no = (
        sorted(
            {
                tokenizer(space + spelling, add_special_tokens=False)["input_ids"][0]
                for spelling in (word, word.capitalize(), word.upper())
                for space in ("", " ")
            }
        )
        for word in ("yes", "no")
    )
    # a tokenizer may write the space as a token of its own, which says nothing
    both = set(yes) & set(no)
    yes, no = ([id_ for id_ in ids if id_ not in both] for ids in (yes, no))
    if not yes or not no:
        raise ValueError(
            f"{type(tokenizer).__name__} begins 'yes' and 'no' with the same tokens; its model can't be an evaluator."
        )
    return yes, no


def match_logit(logits: Tensor, yes_ids: Sequence[int], no_ids: Sequence[int]) -> Tensor:
    """
    Log-odds that the answer is yes: `log p(yes) - log p(no)`, each summed over its spellings. That confidence comes
    from a match logit is the paper's; summing over spellings is ours.

    Args:
        logits: `(..., V)` of the next token.
        yes_ids: tokens with which "yes" may begin.
        no_ids: tokens with which "no" may begin.

    Returns:
        `(...)`, float32.

    >>> import torch
    >>> match_logit(torch.tensor([1.0, 0.5, 0.0]), [0], [1]).item()
    0.5
    """
    logits = logits.float()
    return logits[..., list(yes_ids)].logsumexp(dim=-1) - logits[..., list(no_ids)].logsumexp(dim=-1)
