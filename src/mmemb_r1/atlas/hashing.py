"""Make choices that depend on a seed and a name alone: not on order, platform or library version."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

import numpy as np


def unit_hash(*parts: object) -> float:
    """Hash `parts` to a number in [0, 1).

    >>> unit_hash("a", 1) == unit_hash("a", 1) != unit_hash("a", 2)
    True
    """
    return _digest(parts) / 2**64


def seeded_rng(*parts: object) -> np.random.Generator:
    """Make a random generator that is seeded with `parts`."""
    return np.random.default_rng(_digest(parts))


def split_keys(keys: Iterable[str], fractions: dict[str, float], *seed: object) -> dict[str, str]:
    """Assign each key to a split, in sizes that follow `fractions` (which sum to 1) to within one key.

    >>> sorted(split_keys("abcdefghij", {"train": 0.7, "test": 0.3}, 0).values())
    ['test', 'test', 'test', 'train', 'train', 'train', 'train', 'train', 'train', 'train']
    """
    ordered = sorted(keys, key=lambda key: (unit_hash(*seed, key), key))
    assigned, start, total = {}, 0, 0.0
    for split, fraction in fractions.items():
        total += fraction
        stop = round(total * len(ordered))
        assigned.update(dict.fromkeys(ordered[start:stop], split))
        start = stop
    return assigned


def _digest(parts: tuple[object, ...]) -> int:
    return int.from_bytes(sha256(repr(parts).encode()).digest()[:8], "big")
