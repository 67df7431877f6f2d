"""Draw at random by a seed and names only: not by what was drawn before, nor by the process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_MISSES = 32  # draws that hit what was drawn before, until the rest is taken in order


def seeded_random(*names: object) -> random.Random:
    """
    Make a random stream of its own for `names`.

    >>> seeded_random(0, "a").random() == seeded_random(0, "a").random() != seeded_random(0, "b").random()
    True
    """
    return random.Random(repr(names))


def random_order(size: int, stream: random.Random) -> Iterator[int]:
    """
    Yield the numbers below `size` in random order, each worked out when it is asked for: the first few of a million
    cost no more than those of ten.

    >>> sorted(random_order(5, seeded_random(0)))
    [0, 1, 2, 3, 4]
    """
    moved: dict[int, int] = {}
    for last in range(size - 1, -1, -1):
        place = stream.randrange(last + 1)
        yield moved.get(place, place)
        moved[place] = moved.get(last, last)


def ring_position(*names: object) -> int:
    """
    Find the place of something on a ring of 64 bits, by its names alone.

    >>> 0 <= ring_position(0, "a") < 2**64 and ring_position(0, "a") != ring_position(1, "a")
    True
    """
    return int.from_bytes(blake2b(repr(names).encode(), digest_size=8).digest())


def ring_order(ring: npt.NDArray[np.uint64], stream: random.Random) -> Iterator[int]:
    """
    Yield the places of a ring in random order, one that hardly changes with what is on the ring.

    Random points are drawn, and each takes what comes next on the ring (consistent hashing). Where one thing leaves or
    comes, only those orders change, from there on, in which it is. The price: on one ring some things are drawn more
    often than others, as the gaps before them are larger.

    Args:
        ring: `(N,)` positions in ascending order, see `ring_position`.
        stream: of random numbers.

    >>> import numpy as np
    >>> sorted(ring_order(np.array([3, 2**63], dtype=np.uint64), seeded_random(0)))
    [0, 1]
    """
    seen: set[int] = set()
    place, misses = 0, 0
    while len(seen) < len(ring) and misses < _MISSES:
        point = ring.dtype.type(stream.getrandbits(64))
        place = int(ring.searchsorted(point)) % len(ring)
        if place in seen:
            misses += 1
        else:
            seen.add(place)
            yield place
    for step in range(len(ring)):
        rest = (place + step) % len(ring)
        if rest not in seen:
            yield rest
