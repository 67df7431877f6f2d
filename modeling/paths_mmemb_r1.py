"""
Know the layout of what is read and written, so that nothing else has to look for control tokens:

    prompt MARKER   [OPENING  r  END  CLOSING]   once per rationale r

At the marker the gate decides, and there the direct embedding is read; at the last token of CLOSING the next one, and
the gate is asked again. By default MARKER is `<|embed|>`, OPENING `<think>`, END `</think>` and CLOSING `<|embed|>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def suffix_of_ids(config: Any, ids: Iterable[int]) -> list[int]:
    """Put the ids of a rationale between control tokens: what follows a marker."""
    return [*config.opening_ids, *ids, config.end_think_token_id, *config.closing_ids]


def num_control_tokens(config: Any) -> int:
    """Count the tokens around the ids of one rationale."""
    return len(suffix_of_ids(config, []))


def round_ids(config: Any, ids: Sequence[int]) -> list[list[int]]:
    """
    Cut the ids of one or more rationales, as an output's `rationale_ids` holds them, where one ends.

    Args:
        config: the [`MMEmbR1Config`].
        ids: `r END CLOSING OPENING r ...`, without the control tokens around the whole.

    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace(opening_ids=[1], end_think_token_id=2, closing_ids=[3])
    >>> round_ids(config, [7, 8, 2, 3, 1, 9])
    [[7, 8], [9]]
    """
    between = 1 + len(config.closing_ids) + len(config.opening_ids)
    rounds, rest = [], list(ids)
    while config.end_think_token_id in rest:
        end = rest.index(config.end_think_token_id)
        rounds.append(rest[:end])
        rest = rest[end + between :]
    return [*rounds, rest]


def reading_places(config: Any, input_ids: Tensor, mask: Tensor, read: bool = False) -> Tensor:
    """
    Find where embeddings are read and the gate is asked: at the marker, and at the end of each rationale.

    Args:
        config: the [`MMEmbR1Config`].
        input_ids: `(B, S)` prompts and what follows them.
        mask: `(B, S)` attention mask; padding may be the same token as the marker.
        read: whether the prompts with their markers are not among the ids, because they were read before.

    Returns:
        `(B, S)` bool.
    """
    mask = mask.bool()
    markers = (input_ids == config.embed_token_id) & mask
    end = config.end_think_token_id
    around = [*config.opening_ids, end, *config.closing_ids]
    if around[-1] == config.embed_token_id:
        return markers
    # The last token may stand elsewhere around a rationale, even more than once (but in none): it is each n-th.
    begun = torch.ones_like(mask) if read else markers.cumsum(dim=1) > 0
    candidates = (input_ids == around[-1]) & mask & begun
    return candidates & (candidates.cumsum(dim=1) % around.count(around[-1]) == 0) | markers


def chosen_places(config: Any, places: Tensor) -> Tensor:
    """
    Find the tokens that a model chose as words of a rationale or as its end, which others only surround.

    Args:
        config: the [`MMEmbR1Config`].
        places: `(B, S)` from [`reading_places`]; what a row holds before the first and after the last does not count.

    Returns:
        `(B, S)` bool.
    """
    number = places.long().cumsum(dim=1)  # (B, S), of places so far, this one included
    total = number[:, -1:]
    inside = (number > 0) & ((number < total) | (places & (number == total) & (total > 1)))
    around = torch.zeros_like(places)
    for after in range(len(config.opening_ids) + 1):  # a place itself is its end's only if nothing closes
        if after or config.closing_ids:
            around |= torch.nn.functional.pad(places, (after, 0))[:, : places.shape[1]]
    for before in range(1, len(config.closing_ids)):
        around |= torch.nn.functional.pad(places, (0, before))[:, before:]
    first = places & (number == 1)  # of the prompt
    return inside & ~around & ~first
