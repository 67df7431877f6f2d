"""The probability of the target: what training maximises, what rewards and the gate measure, and what reports show."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
import numpy.typing as npt
from torch import Tensor

TEMPERATURE = 0.02  # divides cosine similarities, in training as in evaluation


@overload
def target_probability(
    scores: Tensor, targets: Tensor, temperature: float = ..., *, log: bool = ..., fused: bool = ...
) -> Tensor: ...
@overload
def target_probability(
    scores: npt.NDArray[np.float64], targets: npt.NDArray[np.int64], temperature: float = ...
) -> npt.NDArray[np.float64]: ...
def target_probability(
    scores: Any, targets: Any, temperature: float = TEMPERATURE, *, log: bool = False, fused: bool = True
) -> Any:
    """
    Compute the softmax probability of each query's target among its candidates.

    It is bounded, and relative to the other candidates: what raises all scores alike changes nothing. There is one
    formula and several orders of its operations, which agree up to rounding; each caller keeps its own, so that a
    training can be repeated to the last bit.

    Args:
        scores: `(B, C)` cosine similarities, `-inf` where a candidate does not compete: a tensor, through which
            gradients flow, or a float64 array.
        targets: `(B,)` the column of each query's target.
        temperature: divides the scores. 1 for scores that are divided already.
        log: whether to return the logarithm, which is exact for small probabilities too. Of tensors only.
        fused: whether the logarithm comes from `log_softmax`; else from the difference to `logsumexp`.

    Returns:
        `(B,)` probabilities, or their logarithms. Source: ours.

    >>> target_probability(np.array([[0.5, 0.48, -np.inf]]), np.array([0])).round(3).tolist()
    [0.731]
    """
    if isinstance(scores, np.ndarray):
        target = scores[np.arange(len(scores)), targets][:, None]  # (B, 1)
        others = scores.copy()
        np.put_along_axis(others, targets[:, None], -np.inf, axis=1)
        return 1 / (1 + np.exp((others - target) / temperature).sum(axis=1))
    scores = scores if temperature == 1 else scores / temperature
    columns = targets[:, None]
    if log and not fused:
        return scores.gather(1, columns).squeeze(1) - scores.logsumexp(dim=1)
    found = scores.log_softmax(dim=1) if log else scores.softmax(dim=1)
    return found.gather(1, columns).squeeze(1)
