"""Inputs as tables hold them: an object whose absent parts are empty."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

PARTS = ("text", "image", "video", "instruction")


def given_parts(value: Mapping[str, Any]) -> dict[str, Any]:
    """One input of a table without the parts that are empty there.

    >>> given_parts({"text": "capital?", "image": [], "instruction": None})
    {'text': 'capital?'}
    """
    return {key: part for key, part in value.items() if part}


def inputs_of(column: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The inputs of a column of a table as the model takes them."""
    return [given_parts(value) for value in column]
