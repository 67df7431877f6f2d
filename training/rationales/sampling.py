"""Sample continuations of prompts that were read once, each row from its own random numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmemb_r1.training.shared_prefix import Prefix, extend


@dataclass(frozen=True)
class Continuation:
    """
    The tokens sampled after a prompt.

    Args:
        token_ids: the tokens, without the end token.
        ended: whether an end token came; otherwise the budget was spent.
    """

    token_ids: list[int]
    ended: bool


def choose(logits: Tensor, uniforms: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """
    Draw one token per row by inverting the distribution function: the same number gives the same token, whatever the
    other rows are and on whatever device.

    The tokens are sorted from the likeliest down (ties: by id), and the first ones kept that reach `top_p` together.
    Their probabilities, scaled to a sum of one, divide the unit interval; the number falls into one token's share.

    Args:
        logits: `(N, V)`.
        uniforms: `(N,)` numbers in [0, 1).
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: from 0 (exclusive) to 1.

    Returns:
        `(N,)` token ids.

    >>> logits = torch.tensor([[0.2, 0.5, 0.3]]).log().expand(4, -1)
    >>> choose(logits, torch.tensor([0.0, 0.49, 0.51, 0.99])).tolist()
    [1, 1, 2, 0]
    >>> choose(logits, torch.tensor([0.0, 0.49, 0.63, 0.99]), top_p=0.75).tolist()
    [1, 1, 2, 2]
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() - logits.max(dim=-1, keepdim=True).values  # so that no temperature is too low
    probabilities = (logits / temperature).softmax(dim=-1)
    sorted_, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    cumulative = sorted_.cumsum(dim=-1)  # (N, V)
    last = (
        (cumulative < top_p).sum(dim=-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    )  # (N, 1) least likely one kept
    wanted = uniforms.to(cumulative)[:, None] * cumulative.gather(1, last)
    position = torch.searchsorted(cumulative, wanted, right=True).minimum(last)  # (N, 1)
    return ids.gather(1, position).squeeze(1)


def row_uniforms(seeds: Sequence[int], length: int) -> Tensor:
    """
    Draw numbers in [0, 1) `(N, length)`, row i from a generator with its own seed, on the CPU. A longer row begins
    like a shorter one.
    """
    rows = [torch.rand(length, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, length)


@torch.no_grad()
def draw_continuations(
    vlm: Any,
    prefix: Prefix,
    seeds: Sequence[int],
    *,
    end_ids: Collection[int],
    max_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    narrow: Callable[[Tensor], Tensor] | None = None,
) -> list[Continuation]:
    """
    Continue every row until it ends or its budget is spent; ended rows leave the batch.

    Args:
        vlm: the model that read the prefix.
        prefix: one row per continuation; its cache is changed.
        seeds: one per row. Token t of a row is chosen by number t of its seed, so it does not depend on other rows.
        end_ids: tokens that end a continuation.
        max_tokens: budget of one.
        temperature, top_p: as for `choose`.
        narrow: restricts logits `(N, V)` to those that tokens are drawn from, not in place. Default: no restriction.
    """
    uniforms = row_uniforms(seeds, max_tokens).to(prefix.logits.device)
    ends = torch.tensor(sorted(end_ids), dtype=torch.long, device=prefix.logits.device)
    token_ids: list[list[int]] = [[] for _ in seeds]
    ended = [False] * len(seeds)
    rows = torch.arange(len(seeds), device=prefix.logits.device)
    for step in range(max_tokens):
        logits = prefix.logits if narrow is None else narrow(prefix.logits)
        chosen = choose(logits, uniforms[rows, step], temperature, top_p)  # (rows,)
        at_end = torch.isin(chosen, ends)
        for row, token, end in zip(rows.tolist(), chosen.tolist(), at_end.tolist(), strict=True):
            if end:
                ended[row] = True
            else:
                token_ids[row].append(token)
        stay = (~at_end).nonzero().squeeze(1)
        if not len(stay) or step + 1 == max_tokens:
            break
        if len(stay) < len(rows):
            prefix, rows, chosen = prefix.select(stay), rows[stay], chosen[stay]
        prefix = extend(vlm, prefix, chosen[:, None])
    return [Continuation(ids, end) for ids, end in zip(token_ids, ended, strict=True)]
