"""Put two small heads on the backbone: the reasoning gate, and the embedding head with its poolings."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig


class ReasoningGate(nn.Module):
    """
    Decide at an `<|embed|>` whether to think: what [`gate_inputs`] gives, `(..., G)` -> logit `(...)`.

    `sigmoid(logit)` is the probability of `<think>` against stopping. A fresh gate is constant: its weights are zero
    and its bias is `config.gate_init_bias`.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.init_bias = config.gate_init_bias
        width, size = config.gate_hidden_size, config.hidden_size * len(config.gate_inputs)
        self.hidden = nn.Linear(size, width) if width else None
        self.output = nn.Linear(width or size, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs.to(self.output.weight.dtype)  # the gate may be trained in float32 on a bfloat16 backbone
        if self.hidden is not None:
            hidden = nn.functional.silu(self.hidden(hidden))
        return self.output(hidden).squeeze(-1).float()  # (..., G) -> (...)

    @property
    def first(self) -> str:
        """Name the layer that sees the inputs."""
        return "output" if self.hidden is None else "hidden"

    @torch.no_grad()
    def reset(self) -> None:
        """Make the gate a constant that prefers the direct embedding."""
        nn.init.zeros_(self.output.weight)  # unlike `zero_`, these leave alone what was loaded from a checkpoint
        nn.init.constant_(self.output.bias, self.init_bias)


class Pooled(NamedTuple):
    """
    Hold a weighted mean of hidden states that can be extended token by token.

    Attributes:
        log_weight: `(B,)` logarithm of the summed weights so far, in float32.
        mean: `(B, H)` weighted mean of the hidden states so far, in float32: in bfloat16 it would stand still.
    """

    log_weight: Tensor
    mean: Tensor

    def select(self, rows: Tensor) -> Pooled:
        """Keep the given rows only."""
        return Pooled(self.log_weight[rows], self.mean[rows])

    def where(self, rows: Tensor, other: Pooled) -> Pooled:
        """Keep the rows where `rows` `(B,)` is true, and take those of another elsewhere."""
        return Pooled(
            torch.where(rows, self.log_weight, other.log_weight), torch.where(rows[:, None], self.mean, other.mean)
        )

    def beside(self, other: Pooled) -> Pooled:
        """Join the rows of both."""
        return Pooled(torch.cat([self.log_weight, other.log_weight]), torch.cat([self.mean, other.mean]))


class EmbeddingHead(nn.Module):
    """
    Turn the hidden states up to an `<|embed|>` into an embedding: pooling, projection, truncation, normalisation.

    `pool` reads a whole sequence at once; `extend` adds one token, so decoding never keeps old hidden states. Both
    give the same vector. A pooling is a subclass that says how much each state weighs, see [`register_pooling`].
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config  # whose truncate_dim and normalize may be set later
        self.add_weights(config)
        self.projection = (
            nn.Linear(config.hidden_size, config.embedding_dim, bias=False) if config.embedding_dim else None
        )

    def add_weights(self, config: PreTrainedConfig) -> None:
        """Make the layers that the pooling learns. Default: none."""

    def log_weights(self, hidden: Tensor) -> Tensor:
        """Compute the logarithm of each state's weight in the mean: `(..., H)` -> `(...)` in float32."""
        raise NotImplementedError(f"{type(self).__name__} has to define log_weights.")

    def pool(self, hidden: Tensor, mask: Tensor) -> Pooled:
        """Pool the positions of `hidden` `(B, S, H)` where `mask` `(B, S)` is true."""
        log_weights = self.log_weights(hidden).masked_fill(~mask.bool(), -torch.inf)  # (B, S)
        log_weight = log_weights.logsumexp(dim=1)  # (B,)
        weights = (log_weights - log_weight[:, None]).exp()
        return Pooled(log_weight, torch.einsum("bs,bsh->bh", weights, hidden.float()))

    def extend(self, pooled: Pooled, hidden: Tensor) -> Pooled:
        """Add one token per row, with hidden states `hidden` `(B, H)`."""
        return self.join(pooled, Pooled(self.log_weights(hidden), hidden.float()))

    def join(self, pooled: Pooled, later: Pooled) -> Pooled:
        """Join what was pooled of a row's first tokens with what was pooled of its later ones."""
        total = torch.logaddexp(pooled.log_weight, later.log_weight)
        share = (later.log_weight - total).exp()[:, None]  # (B, 1)
        return Pooled(total, pooled.mean + share * (later.mean - pooled.mean))

    def forward(self, pooled: Tensor, whole: bool = False) -> Tensor:
        """Turn pooled states `(..., H)` into embeddings `(..., D)`, in float32; `whole` ones are not truncated."""
        embedding = pooled if self.projection is None else self.projection(pooled.to(self.projection.weight.dtype))
        return finished(self.config, embedding, whole)


def finished(config: PreTrainedConfig, embedding: Tensor, whole: bool = False) -> Tensor:
    """Truncate (unless `whole`) and normalise embeddings `(..., D)` as the config says, in float32."""
    embedding = (embedding if whole else embedding[..., : config.truncate_dim]).float()
    return nn.functional.normalize(embedding, dim=-1) if config.normalize else embedding


_POOLINGS: dict[str, type[EmbeddingHead]] = {}
_Head = TypeVar("_Head", bound=type[EmbeddingHead])


def register_pooling(name: str) -> Callable[[_Head], _Head]:
    """
    Register a pooling under the name that `MMEmbR1Config.pooling` takes: decorate a subclass of [`EmbeddingHead`].

    A pooling of your own needs no change to this package: import the module that registers it before a checkpoint with
    it is made or loaded. Such a checkpoint needs the package and that module; with `trust_remote_code` alone it does
    not load.

    Raises:
        ValueError: if another pooling has this name.

    >>> @register_pooling("norm")
    ... class NormPooling(EmbeddingHead):
    ...     def log_weights(self, hidden):
    ...         return hidden.float().norm(dim=-1).log()  # long states count for more
    >>> pooling_class("norm").__name__
    'NormPooling'
    """

    def register(head: _Head) -> _Head:
        known = _POOLINGS.setdefault(name, head)
        if (known.__module__, known.__qualname__) != (head.__module__, head.__qualname__):
            raise ValueError(f"The pooling {name!r} is {known.__qualname__} already; choose another name.")
        _POOLINGS[name] = head  # the same anew: of a module that was loaded again
        return head

    return register


def pooling_class(name: str) -> type[EmbeddingHead]:
    """
    Look up the head of a pooling.

    Raises:
        ValueError: if no pooling has this name.
    """
    if name not in _POOLINGS:
        raise ValueError(
            f"pooling={name!r} is not known; allowed: {', '.join(_POOLINGS)}. If it is one of your own, import the "
            "module that registers it (register_pooling of heads_mmemb_r1) first."
        )
    return _POOLINGS[name]


@register_pooling("last")
class LastPooling(EmbeddingHead):
    """Take the state at the marker, or before it: the last position, whatever side the padding is on."""

    def log_weights(self, hidden: Tensor) -> Tensor:
        return hidden.new_zeros(hidden.shape[:-1], dtype=torch.float32)

    def pool(self, hidden: Tensor, mask: Tensor) -> Pooled:
        positions = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * positions).argmax(dim=1)  # (B, S) -> (B,)
        mean = hidden[torch.arange(len(last), device=last.device), last]  # (B, S, H) -> (B, H)
        return Pooled(torch.zeros(len(last), device=hidden.device), mean.float())

    def join(self, pooled: Pooled, later: Pooled) -> Pooled:
        return later


@register_pooling("mean")
class MeanPooling(EmbeddingHead):
    """Take the mean of all states."""

    def log_weights(self, hidden: Tensor) -> Tensor:
        return hidden.new_zeros(hidden.shape[:-1], dtype=torch.float32)


@register_pooling("attention")
class AttentionPooling(EmbeddingHead):
    """Take a mean with learned weights: the softmax of a linear score of each state."""

    def add_weights(self, config: PreTrainedConfig) -> None:
        self.score = nn.Linear(config.hidden_size, 1, bias=False)

    def log_weights(self, hidden: Tensor) -> Tensor:
        return self.score(hidden.to(self.score.weight.dtype)).squeeze(-1).float()  # (..., H) -> (...)
