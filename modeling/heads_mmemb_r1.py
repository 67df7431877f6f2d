"""The two small heads on top of the backbone: the reasoning gate and the embedding head."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig


class ReasoningGate(nn.Module):
    """
    Decides at an `<|embed|>` whether to think: hidden state `(..., H)` -> logit `(...)`.

    `sigmoid(logit)` is the probability of `<think>` against stopping. A fresh gate is constant: its weights are zero
    and its bias is `config.gate_init_bias`.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.init_bias = config.gate_init_bias
        width = config.gate_hidden_size
        self.hidden = nn.Linear(config.hidden_size, width) if width else None
        self.output = nn.Linear(width or config.hidden_size, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden.to(self.output.weight.dtype)  # the gate may be trained in float32 on a bfloat16 backbone
        if self.hidden is not None:
            hidden = nn.functional.silu(self.hidden(hidden))
        return self.output(hidden).squeeze(-1).float()  # (..., H) -> (...)

    @torch.no_grad()
    def reset(self) -> None:
        """Make the gate a constant that prefers the direct embedding."""
        nn.init.zeros_(self.output.weight)  # unlike `zero_`, these leave alone what was loaded from a checkpoint
        nn.init.constant_(self.output.bias, self.init_bias)


class Pooled(NamedTuple):
    """
    A weighted mean of hidden states that can be extended token by token.

    Attributes:
        log_weight: `(B,)` logarithm of the summed weights so far, in float32.
        mean: `(B, H)` weighted mean of the hidden states so far, in float32: in bfloat16 it would stand still.
    """

    log_weight: Tensor
    mean: Tensor

    def select(self, rows: Tensor) -> Pooled:
        """The given rows only."""
        return Pooled(self.log_weight[rows], self.mean[rows])

    def beside(self, other: Pooled) -> Pooled:
        """The rows of both."""
        return Pooled(torch.cat([self.log_weight, other.log_weight]), torch.cat([self.mean, other.mean]))


class EmbeddingHead(nn.Module):
    """
    Turns the hidden states up to an `<|embed|>` into an embedding: pooling, projection, truncation, normalisation.

    `pool` reads a whole sequence at once; `extend` adds one token, so decoding never keeps old hidden states. Both
    give the same vector.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.pooling = config.pooling
        self.truncate_dim = config.truncate_dim
        self.normalize = config.normalize
        self.score = nn.Linear(config.hidden_size, 1, bias=False) if config.pooling == "attention" else None
        self.projection = (
            nn.Linear(config.hidden_size, config.embedding_dim, bias=False) if config.embedding_dim else None
        )

    def _log_weights(self, hidden: Tensor) -> Tensor:
        if self.score is None:
            return hidden.new_zeros(hidden.shape[:-1], dtype=torch.float32)
        return self.score(hidden.to(self.score.weight.dtype)).squeeze(-1).float()  # (..., H) -> (...)

    def pool(self, hidden: Tensor, mask: Tensor) -> Pooled:
        """
        Pool the positions of `hidden` `(B, S, H)` where `mask` `(B, S)` is true.

        With `pooling="last"` that is the last such position, whatever side the padding is on.
        """
        if self.pooling == "last":
            positions = torch.arange(mask.shape[1], device=mask.device)
            last = (mask * positions).argmax(dim=1)  # (B, S) -> (B,)
            mean = hidden[torch.arange(len(last), device=last.device), last]  # (B, S, H) -> (B, H)
            return Pooled(torch.zeros(len(last), device=hidden.device), mean.float())
        log_weights = self._log_weights(hidden).masked_fill(~mask.bool(), -torch.inf)  # (B, S)
        log_weight = log_weights.logsumexp(dim=1)  # (B,)
        weights = (log_weights - log_weight[:, None]).exp()
        return Pooled(log_weight, torch.einsum("bs,bsh->bh", weights, hidden.float()))

    def extend(self, pooled: Pooled, hidden: Tensor) -> Pooled:
        """Add one token per row, with hidden states `hidden` `(B, H)`."""
        return self.join(pooled, Pooled(self._log_weights(hidden), hidden.float()))

    def join(self, pooled: Pooled, later: Pooled) -> Pooled:
        """What was pooled of a row's first tokens and of its later ones -> of all."""
        if self.pooling == "last":
            return later
        total = torch.logaddexp(pooled.log_weight, later.log_weight)
        share = (later.log_weight - total).exp()[:, None]  # (B, 1)
        return Pooled(total, pooled.mean + share * (later.mean - pooled.mean))

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled states `(..., H)` -> embeddings `(..., D)`, in float32."""
        embedding = pooled if self.projection is None else self.projection(pooled.to(self.projection.weight.dtype))
        embedding = embedding[..., : self.truncate_dim].float()
        return nn.functional.normalize(embedding, dim=-1) if self.normalize else embedding
