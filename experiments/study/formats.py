"""Format scores and differences: shares, points, intervals, p, and the templates that use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2


def environment(loader: jinja2.BaseLoader | None = None) -> jinja2.Environment:
    """Return the environment of the study's templates: the functions below as filters, and an error for every number
    that is missing."""
    made = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701  (Markdown and a terminal, from our own numbers)
    )
    made.filters |= {
        "share": share,
        "percent": percent,
        "decimals": decimals,
        "signed": signed,
        "interval": with_interval,
        "points": points,
        "tested": tested,
        "lost_or_gained": lost_or_gained,
    }
    return made


def share(number: Mapping[str, float] | float) -> str:
    """
    >>> share(0.4567), share({"mean": 1.0, "low": 1.0, "high": 1.0})
    ('.457', '1.000')
    """
    value = number if isinstance(number, float) else number["mean"]
    return f"{value:.3f}".removeprefix("0")


def percent(number: Mapping[str, float] | float) -> str:
    """
    >>> percent(0.456), percent({"mean": 1.0, "low": 1.0, "high": 1.0})
    ('46%', '100%')
    """
    return f"{number['mean'] if isinstance(number, Mapping) else number:.0%}"


def decimals(number: float | None) -> str:
    """
    >>> decimals(0.456), decimals(None)
    ('0.46', '-')
    """
    return "-" if number is None else f"{number:.2f}"


def signed(difference: float) -> str:
    """
    >>> signed(0.0123)
    '+1.2'
    """
    return f"{100 * difference:+.1f}"


def with_interval(number: Mapping[str, float]) -> str:
    """
    >>> with_interval({"mean": 0.4567, "low": 0.4, "high": 0.5})
    '.457 [.400, .500]'
    """
    return f"{share(number)} [{share(number['low'])}, {share(number['high'])}]"


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
