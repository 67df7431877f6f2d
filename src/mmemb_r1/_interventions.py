"""
What takes the place of a rationale when its effect is measured.

That a rationale is taken away (`drop`) is the paper's counterfactual; `swap` and `shuffle`, which keep its form and
take its content, are ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmemb_r1._seeded import random_order, seeded_random

INTERVENTIONS = ("drop", "swap", "shuffle")


def shuffled(text: str, seed: int = 0) -> str:
    """
    The words of a rationale in random order, which differs from theirs wherever two words do.

    A pure function of its arguments.

    >>> sorted(shuffled("It is the flag of Peru.").split())
    ['It', 'Peru.', 'flag', 'is', 'of', 'the']
    >>> shuffled("Peru Lima"), shuffled("Lima")
    ('Lima Peru', 'Lima')
    """
    words = text.split()
    order = list(words)
    stream = seeded_random(seed, "shuffle", text)
    while order == words and len(set(words)) > 1:
        stream.shuffle(order)
    return " ".join(order)


def swap_donors(
    strata: npt.NDArray[np.int64], anchors: npt.NDArray[np.int64], names: Sequence[object], seed: int = 0
) -> npt.NDArray[np.int64]:
    """
    For each rationale another one that takes its place: of the same stratum, about another input.

    Args:
        strata: `(N,)` numbers, equal for the same task, side and worker; negative: no rationale, which neither gets
            nor is a donor.
        anchors: `(N,)` numbers, equal for equal inputs; or `(N, A)`, in each of which a donor has to differ.
        names: `(N,)`, what tells a rationale from the others; with the seed it determines the draw.
        seed: of the draws.

    Returns:
        `(N,)` the donor's place, -1 where there is none.

    >>> swap_donors(np.array([0, 0, 1, -1]), np.array([5, 6, 7, 8]), "abcd").tolist()
    [1, 0, -1, -1]
    """
    anchors = anchors.reshape(len(strata), -1)  # (N, A)
    order = np.argsort(strata, kind="stable")
    sorted_strata = strata[order]
    donors = np.full(len(strata), -1, dtype=np.int64)
    for stratum in np.unique(sorted_strata[sorted_strata >= 0]).tolist():
        first, last = np.searchsorted(sorted_strata, [stratum, stratum + 1])
        members = order[first:last]
        if (anchors[members] == anchors[members[0]]).all(axis=0).any():  # nobody else's
            continue
        for row in members.tolist():
            drawn = random_order(len(members), seeded_random(seed, "swap", names[row]))
            others = (members[place] for place in drawn if (anchors[members[place]] != anchors[row]).all())
            donors[row] = next(others, -1)
    return donors
