"""Choosing the gate's threshold on unlabelled inputs for what thinking may cost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def calibrated_threshold(gate_probs: npt.ArrayLike, target: float, costs: npt.ArrayLike | None = None) -> float:
    """
    The lowest threshold at which thinking costs no more than wanted, on average over the inputs.

    Inputs with the same probability think together or not at all. The threshold lies half-way between the last
    probability that thinks and the next, so that rounding on another machine moves neither across.

    Args:
        gate_probs: `(N,)` probabilities of thinking.
        target: mean cost of an input.
        costs: `(N,)` what each costs if it thinks, for example its tokens. Default: 1 each, so that `target` is the
            invocation ratio, 0 to 1.

    Returns:
        The threshold, in 0 ... 1. Source: ours.

    Raises:
        ValueError: if there are no inputs, a number is not finite or negative, or the threshold would have to be above
            1 because the gate is certain.

    >>> calibrated_threshold([0.1, 0.2, 0.6, 0.8], target=0.5)
    0.4
    >>> calibrated_threshold([0.1, 0.2, 0.6, 0.8], target=4.0, costs=[9, 9, 9, 16])
    0.7
    """
    probs = np.asarray(gate_probs, dtype=np.float64)
    prices = np.ones_like(probs) if costs is None else np.asarray(costs, dtype=np.float64)
    if probs.ndim != 1 or not len(probs) or prices.shape != probs.shape:
        raise ValueError(f"got {probs.shape} probabilities and {prices.shape} costs; both have to be (inputs,).")
    for name, values in (("probability", probs), ("cost", prices), ("target", np.array([target]))):
        if not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError(f"a {name} is negative or not finite; allowed: finite numbers from 0 on.")
    order = np.argsort(-probs, kind="stable")
    spent = np.cumsum(prices[order]) / len(probs)
    ends = np.flatnonzero(np.append(np.diff(probs[order]) < 0, True))  # the last of each probability
    fits = ends[spent[ends] <= target + 1e-12]
    number = int(fits[-1]) + 1 if len(fits) else 0  # inputs that think
    if number == len(probs):
        return 0.0
    highest = probs[order[number]]  # of those that don't
    lowest = probs[order[number - 1]] if number else 1.0
    threshold = float((highest + lowest) / 2)
    if not highest < threshold:
        raise ValueError(
            f"the gate is certain ({highest:g}) of more inputs than may think; raise the target, or train the gate."
        )
    return threshold
