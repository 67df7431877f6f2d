"""Read inputs from JSON lines: which values are inputs, and which line is wrong with what."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def iterate_lines(
    lines: Iterable[str], placed: Callable[[Any], Any], first: int = 1
) -> Iterator[tuple[int, str | dict[str, Any] | list[Any]]]:
    """
    Parse lines one by one, without an error if there are none. Blank ones are passed over.

    Args:
        lines: the lines.
        placed: makes the paths inside an input start from where they do, see `with_paths_from`.
        first: number of the first line, for errors.

    Yields:
        The number of a line, and its input.

    Raises:
        ValueError: naming the line that is no JSON or no input.

    >>> list(iterate_lines(['"a dog"', "", '{"text": "a cat"}'], lambda value: value))
    [(1, 'a dog'), (3, {'text': 'a cat'})]
    """
    for number, line in enumerate(lines, start=first):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits, brackets without end
            raise ValueError(f"line {number} is no JSON: {error}") from error
        if not isinstance(value, str | dict | list):
            raise ValueError(
                f"line {number} is {line.strip()[:40]}; allowed: a string, an object with any of the keys text, "
                "image, video and instruction, or a list of chat messages"
            )
        try:
            value = placed(value)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        yield number, value
