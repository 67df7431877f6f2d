"""
Look again after a rationale: keep the reasoned vector z1, go back to the direct one z0, or mix both.

    z = (1 - w) z0 + w z1,  w = sigmoid(bias + weights . features)

The features cost nothing: how likely the model itself found what it wrote, how long that is, how far it moved the
vector, and what the gate had said. A rationale that the model does not believe can so be taken back. Source: ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .heads_mmemb_r1 import finished
from .options_mmemb_r1 import SECOND_LOOK

FEATURES = SECOND_LOOK[1:]
LEAST_PROBABILITY = 1e-3  # that is read of the gate, and most but this: nearer to 1, float32 has no exact logit


@dataclass
class Look:
    """
    Collect what the second look at a row needs, while the row thinks.

    Attributes:
        direct: `(D,)` embedding before any rationale; neither this one nor the next is truncated.
        reasoned: `(D,)` embedding after the last rationale; `None` before the first has ended.
        logps: log-probabilities of the tokens of all rationales so far, control tokens not counted.
    """

    direct: Tensor
    reasoned: Tensor | None = None
    logps: list[float] = field(default_factory=list)


def likelihood(logps: Sequence[float], budget: int) -> tuple[float, float, float]:
    """
    Sum up how likely a rationale was: the features `mean_logp`, `least_logp` and `length`.

    Args:
        logps: log-probabilities of its tokens, of the whole vocabulary at temperature 1.
        budget: how many tokens it might have had.

    Returns:
        Mean and least of them, and their number as a share of the budget. Nothing at all was certain: 0, 0 and 0.

    >>> likelihood([-1.0, -3.0], budget=8), likelihood([], budget=8)
    ((-2.0, -3.0, 0.25), (0.0, 0.0, 0.0))
    """
    if not logps:
        return 0.0, 0.0, 0.0
    return sum(logps) / len(logps), min(logps), len(logps) / budget


def second_look_features(written: Tensor, direct: Tensor, reasoned: Tensor, gate_prob: Tensor) -> Tensor:
    """
    Put together what the second look reads.

    Args:
        written: `(N, 3)` from [`likelihood`].
        direct, reasoned: `(N, D)` embeddings, before any rationale and after the last, not truncated.
        gate_prob: `(N,)` probability of thinking before any rationale; read as its logit, within 7.

    Returns:
        `(N, 5)` float32, in the order of `FEATURES`.
    """
    cosine = nn.functional.cosine_similarity(direct.float(), reasoned.float(), dim=-1)
    logit = gate_prob.float().logit(eps=LEAST_PROBABILITY)
    return torch.cat([written.float(), torch.stack([cosine, logit], dim=-1)], dim=-1)


def second_look_weight(weights: Mapping[str, float], features: Tensor) -> Tensor:
    """
    Compute how much of the reasoned embedding is kept.

    Args:
        weights: the config's `second_look`.
        features: `(N, 5)` from [`second_look_features`].

    Returns:
        `(N,)`, between 0 (back to the direct embedding) and 1 (the reasoned one).

    >>> weights = dict.fromkeys(FEATURES, 0.0) | {"bias": 0.0, "mean_logp": 1.0}
    >>> second_look_weight(weights, torch.tensor([[0.0, 0, 0, 0, 0], [-100.0, 0, 0, 0, 0]])).tolist()
    [0.5, 0.0]
    """
    bias, *slopes = (weights[name] for name in SECOND_LOOK)
    return (features @ features.new_tensor(slopes) + bias).sigmoid()


def mixed(direct: Tensor, reasoned: Tensor, weight: Tensor) -> Tensor:
    """Mix embeddings `(N, D)` by the weight `(N,)` of the reasoned one; the result has no unit norm."""
    return (1 - weight[:, None]) * direct + weight[:, None] * reasoned


def look_again(config: Any, states: Sequence[Any], gate_prob: Tensor) -> tuple[Tensor, Tensor]:
    """
    Give rows that have thought the vectors of their second look.

    Args:
        config: the [`MMEmbR1Config`], with `second_look`.
        states: N [`RationaleState`] with a `look` and at least one embedding.
        gate_prob: `(N,)` probability of thinking before any rationale.

    Returns:
        Embeddings `(N, D)` as the head gives them, truncated and normalised where the config says so, and `(N,)` how
        much of each is the reasoned one; both float32.
    """
    looks = [state.look for state in states]
    direct, reasoned = (torch.stack([getattr(look, name) for look in looks]) for name in ("direct", "reasoned"))
    written = [likelihood(state.look.logps, state.max_tokens * len(state.embeddings)) for state in states]
    features = second_look_features(direct.new_tensor(written), direct, reasoned, gate_prob.to(direct.device))
    weight = second_look_weight(config.second_look, features)
    return finished(config, mixed(direct, reasoned, weight)), weight
