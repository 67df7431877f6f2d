"""Write tables and numbers of reports and cards, to no more digits than they carry."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """
    Write a Markdown table; what would end a cell or a line in it is escaped.

    >>> print(table(["mode", "hit@1"], [["a|b", 0.5]]))
    | mode | hit@1 |
    | --- | --- |
    | a\\|b | 0.5 |
    """
    names = list(header)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def significant(value: float) -> str:
    """
    Write three significant digits, without an exponent.

    >>> significant(4.80555), significant(10.0), significant(1234.5)
    ('4.81', '10.0', '1230')
    """
    return f"{Decimal(f'{value:#.3g}'):f}"


def share(value: float) -> str:
    """
    Write a share as a percentage, of which only a whole one is 100%.

    >>> share(0.25), share(0.83777), share(0.9999), share(1.0)
    ('25%', '83.8%', '>99.9%', '100%')
    """
    text = f"{Decimal(f'{100 * value:.3g}'):f}%"
    return ">99.9%" if text == "100%" and value < 1 else text


def score(value: float | None) -> str:
    """Write a score from 0 to 1; one that was not measured is an empty cell."""
    return "" if value is None else f"{value:.3f}"
