"""Where relevant candidates stand among the others, and which ones their scores cannot tell apart."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Places:
    """
    Where the relevant candidates of Q queries stand: all that a metric needs to know, however many others there are.

    One entry per relevant candidate, N in all, by query and then by rank.

    Args:
        query: `(N,)` from 0 to Q - 1, ascending; every query is there.
        grade: `(N,)` above 0.
        above: `(N,)` how many candidates, relevant or not, rank before the entry's tie group.
        tied: `(N,)` how many are in its tie group, itself included.
        relevant_above: `(N,)` how many of those above are relevant.
        relevant_tied: `(N,)` how many of those tied are relevant.
        num_candidates: of the query that has most.
    """

    query: Ints
    grade: Floats
    above: Ints
    tied: Ints
    relevant_above: Ints
    relevant_tied: Ints
    num_candidates: int

    @property
    def order(self) -> Ints:
        """`(N,)` number of the entry among those of its query, from 0."""
        return np.arange(len(self.query)) - np.searchsorted(self.query, self.query)


def find_places(scores: Floats, relevance: Floats, tolerance: float = 0.0) -> Places:
    """
    The tie groups of relevant candidates, and how many candidates each of them holds.

    A group is led by the best relevant candidate that is in no group yet, and holds all that score within `tolerance`
    of it, less what the group before holds. So a group never spans more than twice the tolerance, whereas chains of
    neighbours closer than that can run through half of a large pool; and it does not depend on the order in which
    candidates are given. Those that are not relevant, and not tied with one that is, only count.

    Args:
        scores: `(Q, C)`, higher is better; `-inf` where a query has no candidate.
        relevance: `(Q, C)` grades, 0 for what is not relevant; each query has one above.
        tolerance: scores that differ by no more are a tie. Default: 0.

    >>> places = find_places(np.array([[0.9, 0.5, 0.5, 0.5]]), np.array([[0.0, 1.0, 0.0, 2.0]]))
    >>> places.grade.tolist(), places.above.tolist(), places.tied.tolist(), places.relevant_tied.tolist()
    ([1.0, 2.0], [1, 1], [3, 3], [2, 2])
    """
    relevant = relevance > 0
    query, column = np.nonzero(relevant)  # (N,) each
    score, grade = scores[query, column], relevance[query, column]
    order = np.lexsort((-score, query))
    query, score, grade = query[order], score[order], grade[order]
    first = _first_of_groups(query, score, tolerance)  # (G,)
    size = np.diff(np.append(first, len(query)))
    group = np.repeat(np.arange(len(first)), size)  # (N,)

    best, of = score[first], query[first]
    others = -np.sort(np.where(relevant, np.inf, -scores), axis=1)  # (Q, C), the best first
    start, end = of * others.shape[1], (of + 1) * others.shape[1]
    before = _count(others.ravel(), start, end, best + tolerance, equal=False)
    through = _count(others.ravel(), start, end, best - tolerance, equal=True)
    follows = of[1:] == of[:-1]
    before[1:] = np.where(follows, np.maximum(before[1:], through[:-1]), before[1:])
    relevant_above = first - np.searchsorted(query, of)
    return Places(
        query=query,
        grade=grade[np.lexsort((grade, group))],
        above=(before + relevant_above)[group],
        tied=(through - before + size)[group],
        relevant_above=relevant_above[group],
        relevant_tied=size[group],
        num_candidates=scores.shape[1],
    )


def worst_order(places: Places) -> Places:
    """
    The same candidates without ties: in each group the others come first, and then the relevant by ascending grade.

    >>> tied = find_places(np.array([[0.5, 0.5, 0.5]]), np.array([[2.0, 0.0, 1.0]]))
    >>> places = worst_order(tied)
    >>> places.above.tolist(), places.grade.tolist()
    ([1, 2], [1.0, 2.0])
    """
    within = places.order - places.relevant_above
    alone = np.ones_like(places.tied)
    return replace(
        places,
        above=places.above + places.tied - places.relevant_tied + within,
        tied=alone,
        relevant_above=places.order,
        relevant_tied=alone,
    )


def _first_of_groups(query: Ints, score: Floats, tolerance: float) -> Ints:
    """`(G,)` index of each group's leader, ascending, from `(N,)` scores that descend within each query."""
    # Where a score falls by more than the tolerance a group begins in any case; the stretches between are cut up
    # side by side, each from its top.
    falls = (query[1:] != query[:-1]) | (score[1:] < score[:-1] - tolerance)
    leader = np.flatnonzero(np.append(True, falls))
    end = np.append(leader[1:], len(score))
    found = []
    while leader.size:
        found.append(leader)
        leader = leader + _count(score, leader, end, score[leader] - tolerance, equal=True)
        leader, end = leader[leader < end], end[leader < end]
    return np.sort(np.concatenate(found))


def _count(values: Floats, start: Ints, end: Ints, bound: Floats, *, equal: bool) -> Ints:
    """
    How many of `values[start:end]`, which descend, are above `bound` or equal to it: a bisection per entry of `start`.

    >>> _count(np.array([5.0, 3.0, 3.0, 1.0]), np.array([0, 1]), np.array([4, 4]), np.array([3.0, 2.0]), equal=False)
    array([1, 2])
    """
    low, high = start, end
    while (low < high).any():
        middle = np.minimum((low + high) // 2, len(values) - 1)  # past the end only where low == high already
        counts = values[middle] >= bound if equal else values[middle] > bound
        open_ = low < high
        low = np.where(open_ & counts, middle + 1, low)
        high = np.where(open_ & ~counts, middle, high)
    return low - start
