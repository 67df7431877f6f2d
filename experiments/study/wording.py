"""Scores and differences in words: shares, points, intervals, p, and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def share(number: Mapping[str, float] | float) -> str:
    """
    >>> share(0.4567), share({"mean": 1.0, "low": 1.0, "high": 1.0})
    ('.457', '1.000')
    """
    value = number if isinstance(number, float) else number["mean"]
    return f"{value:.3f}".removeprefix("0")


def points(number: Mapping[str, float], sign: int = 1) -> str:
    """
    A difference in points with its interval; with sign -1 what is lost instead of gained.

    >>> points({"mean": -0.058, "low": -0.09, "high": -0.031}, -1)
    '+5.8 [+3.1, +9.0]'
    """
    mean, *ends = (100 * sign * number[name] + 0.0 for name in ("mean", "low", "high"))  # + 0.0: there is a -0.0
    low, high = sorted(ends)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def tested(number: Mapping[str, Any], sign: int = 1) -> str:
    """The same with p, of a difference of the family, and with the number of seeds if there are several."""
    return f"{points(number, sign)}{_certainty(number)}"


def lost_or_gained(number: Mapping[str, Any]) -> str:
    """
    What a score becomes without something, in words.

    >>> lost_or_gained({"mean": -0.058, "low": -0.09, "high": -0.031, "p_corrected": 0.01, "seeds": {"0": -0.058}})
    'lose 5.8 [3.1, 9.0], p 0.010'
    >>> seeds = {"0": 0.036, "1": 0.0}
    >>> lost_or_gained({"mean": 0.018, "low": -0.002, "high": 0.035, "p_corrected": 0.154, "seeds": seeds})
    'gain 1.8 [-0.2, 3.5], p 0.154, 2 seeds'
    """
    sign = 1 if number["mean"] > 0 else -1
    mean, *ends = (100 * sign * number[name] + 0.0 for name in ("mean", "low", "high"))
    low, high = sorted(ends)
    return f"{'gain' if sign > 0 else 'lose'} {mean:.1f} [{low:.1f}, {high:.1f}]{_certainty(number)}"


def _certainty(number: Mapping[str, Any]) -> str:
    count = len(number["seeds"])
    return f", p {number['p_corrected']:.3f}" + (f", {count} seeds" if count > 1 else "")
