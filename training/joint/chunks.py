"""Part the inputs of a batch into forward passes with little padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PASS_TOKENS = 256  # padding that one pass less is worth: launching it costs as much as about so many tokens


def parts_by_number(lengths: Sequence[float], number: int) -> list[list[int]]:
    """
    Part inputs into so many chunks of as many inputs each, up to one, the shortest inputs first.

    >>> parts_by_number([3, 9, 1, 8], 2)
    [[2, 0], [3, 1]]
    """
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [part.tolist() for part in np.array_split(by_length, number) if len(part)]


def parts_by_tokens(
    lengths: Sequence[float], max_tokens: int, max_rows: int | None = None, pass_tokens: int = PASS_TOKENS
) -> list[list[int]]:
    """
    Part inputs into chunks within a budget of tokens, padding included, such that padding is least. Source: ours.

    Of all ways to cut the inputs, in the order of their lengths, it is the one with the least sum of tokens, padding
    and `pass_tokens` per chunk: a budget that is filled with inputs of very different lengths would be mostly padding.

    Args:
        lengths: tokens of each of U inputs.
        max_tokens: of a chunk; an input with more is a chunk of its own.
        max_rows: inputs of a chunk at most. Default: no limit.
        pass_tokens: what a chunk costs beside its tokens.

    Returns:
        The inputs of each chunk, the longest first: if memory is short, that is known at once.

    >>> parts_by_tokens([100, 3, 2, 99, 3], max_tokens=400, pass_tokens=10)
    [[3, 0], [2, 1, 4]]
    """
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    sizes = np.array([lengths[place] for place in by_length], dtype=float)
    least = np.zeros(len(sizes) + 1)  # of the first so many inputs
    begins = np.zeros(len(sizes) + 1, dtype=int)  # of the last chunk of these
    for end in range(1, len(sizes) + 1):
        rows = int(min(end, max_tokens // max(sizes[end - 1], 1), max_rows or end))
        starts = np.arange(end - max(rows, 1), end)
        costs = least[starts] + (end - starts) * sizes[end - 1]
        best = int(costs.argmin())
        least[end], begins[end] = costs[best] + pass_tokens, starts[best]
    parts, end = [], len(sizes)
    while end:
        parts.append(by_length[begins[end] : end])
        end = int(begins[end])
    return parts
