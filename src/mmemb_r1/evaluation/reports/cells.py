"""Numbers in the cells of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MISSING = "-"


def ends(interval: Sequence[float] | None) -> str:
    """
    Both ends of an interval of shares, without what is the same in all.

    >>> ends([0.8125, 1.0])
    '.81-1.0'
    """
    if interval is None:
        return MISSING
    return "-".join("1.0" if end >= 0.995 else f"{end:.2f}"[1:] for end in interval)


def points(value: float) -> str:
    """
    A share as points, of which 100 are everything.

    >>> points(0.125), points(-0.0001)
    ('12.5', '0.0')
    """
    return f"{100 * value:.1f}".replace("-0.0", "0.0") if abs(value) < 0.0005 else f"{100 * value:.1f}"


def points_between(interval: Mapping[str, float]) -> str:
    """
    Both ends of an interval, as points.

    >>> points_between({"low": -0.01, "high": 0.125})
    '-1.0..12.5'
    """
    return f"{points(interval['low'])}..{points(interval['high'])}"
