"""Compute log-probabilities of tokens from hidden states, without the logits of all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

TOKENS_AT_ONCE = 256  # at a vocabulary of 152k: 156 MB of float32 logits, of which the backward pass needs a few


def token_logps(
    hidden: Tensor,
    ids: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    with_entropies: bool = False,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> tuple[Tensor, Tensor | None]:
    """
    Compute the log-probability of each token given the state that predicts it.

    Logits of at most `tokens_at_once` tokens are held at a time, in the backward pass as well, where they are computed
    again. Results and gradients are those of all at once, up to the order of sums. Source: ours; the chunks are those
    of gradient checkpointing (arXiv 1604.06174).

    Args:
        hidden: `(N, H)` states.
        ids: `(N,)` token ids.
        logits_of: what makes float logits `(n, V)` of states `(n, H)`; the loss's gradient reaches its weights.
        with_entropies: whether to compute the entropies of the distributions as well.
        tokens_at_once: at least 1.

    Returns:
        Log-probabilities `(N,)` float32, and entropies `(N,)` float32 without a gradient, or `None`.

    >>> logps, entropies = token_logps(torch.zeros(3, 2), torch.tensor([0, 1, 1]), lambda states: states, True, 2)
    >>> logps.exp().tolist()
    [0.5, 0.5, 0.5]
    """

    def of_chunk(states: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_of(states).float()  # (n, V)
        entropies = logits.new_zeros(0)
        if with_entropies:
            entropies = torch.special.entr(logits.detach().softmax(dim=-1)).sum(dim=-1)  # (n, V) -> (n,)
        return -functional.cross_entropy(logits, wanted, reduction="none"), entropies

    again = torch.is_grad_enabled() and len(ids) > tokens_at_once
    parts = [
        checkpoint(of_chunk, *chunk, use_reentrant=False) if again else of_chunk(*chunk)
        for chunk in zip(hidden.split(tokens_at_once), ids.split(tokens_at_once), strict=True)
    ]
    logps, entropies = (torch.cat(part) for part in zip(*parts, strict=True))
    return logps, entropies if with_entropies else None


def called_once(module: nn.Module, work: Callable[..., Any], *inputs: Any) -> Any:
    """
    Run `work(*inputs)` in the place of a module's forward, so that hooks around the module run once, however often
    `work` calls its real forward.

    Where FSDP2 shards the module, these hooks gather its weights, and reduce their gradients. Processes with different
    numbers of chunks would wait for each other for ever.

    >>> called_once(nn.Identity(), lambda value: value + 1, torch.tensor(1))
    tensor(2)
    """
    own = vars(module).get("forward")  # accelerate puts one there, for hooks of its own
    module.forward = work
    try:
        return module(*inputs)
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
