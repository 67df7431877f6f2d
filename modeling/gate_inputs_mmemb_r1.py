"""Give the gate what it reads: the state at the marker, the words of the prompt, or both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig


def gate_inputs(config: PreTrainedConfig, state: Tensor, words: Tensor | None) -> Tensor:
    """
    Put together what the gate reads.

    Args:
        state: `(..., H)` hidden state at the marker.
        words: `(..., H)` mean word embedding of the prompt; `None` where the gate does not read it.

    Returns:
        `(..., G)`, in the order of `config.gate_inputs`.
    """
    if words is None:
        return state
    words = words.to(state.dtype)
    return torch.cat([state, words], dim=-1) if "state" in config.gate_inputs else words


def media_token_ids(config: Any) -> list[int]:
    """List the ids that stand for pictures and videos, by a backbone's config."""
    names = [f"{medium}_token_{kind}" for medium in ("image", "video") for kind in ("id", "index")]
    return [token for name in names if isinstance(token := getattr(config, name, None), int)]


def mean_words(vlm: Any, input_ids: Tensor, mask: Tensor) -> Tensor:
    """
    Compute the mean of the word embeddings of each row, without gradient. Placeholders of pictures and videos are no
    words: how many there are depends on who counts.

    Args:
        input_ids: `(B, S)`.
        mask: `(B, S)`, true where a token counts.

    Returns:
        `(B, H)` float32; zero where no token counts.
    """
    counts = mask.bool() & ~torch.isin(input_ids, input_ids.new_tensor(media_token_ids(vlm.config)))  # (B, S)
    with torch.no_grad():
        embedded = vlm.get_input_embeddings()(input_ids.where(counts, 0)).float()  # (B, S, H)
        total = (embedded * counts[..., None]).sum(dim=1)
    return total / counts.sum(dim=1, keepdim=True).clamp(min=1)
