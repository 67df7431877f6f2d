"""Wrong partners to try a rationale on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import numpy.typing as npt

from mmemb_r1._seeded import random_order, seeded_random
from mmemb_r1.training.posterior.pair_index import PairIndex, Partners, other_side
from mmemb_r1.training.prior.worker import SIDES


@dataclass(frozen=True)
class Negatives:
    """
    Inputs of the other side that do not match.

    Args:
        own: places in the pair's own `negatives`.
        rows: rows of the pairs table whose input of the other side is meant.
    """

    own: tuple[int, ...]
    rows: tuple[int, ...]


class NegativeSampler:
    """
    Draws the negatives of a pair's side, of different content each.

    First come the pair's own negatives (for its query), then partners of other pairs of its task, then of other
    tasks. What is known to match is never drawn: the content of the partner, and of every partner that an identical
    input has anywhere in the table.

    Args:
        index: of the pairs table.
        num_negatives: how many to draw.
        seed: the draw is a pure function of it, the pair's id, the side and the table.
    """

    def __init__(self, index: PairIndex, num_negatives: int = 4, seed: int = 0) -> None:
        self.index, self.num_negatives, self.seed = index, num_negatives, seed
        self._partners = {side: Partners(index, side) for side in SIDES}
        self._all = {side: _first_rows(index.content[side], range(len(index))) for side in SIDES}
        rows_of_task: dict[str, list[int]] = {}
        for row, task in enumerate(index.tasks):
            rows_of_task.setdefault(task, []).append(row)
        self._of_task = {
            side: {task: _first_rows(index.content[side], rows) for task, rows in rows_of_task.items()}
            for side in SIDES
        }

    def draw(self, row: int, side: str) -> Negatives:
        """
        Args:
            row: of the pair.
            side: `"query"` draws targets, `"target"` queries.

        Raises:
            ValueError: if the table has too few.
        """
        drawn = list(islice(self._candidates(row, side), self.num_negatives))
        if len(drawn) < self.num_negatives:
            raise ValueError(
                f"the pair {self.index.ids[row]!r} has {len(drawn)} possible negatives for its {side}, but "
                f"num_negatives={self.num_negatives}: the table has too few pairs with other partners. Lower the "
                "number or add pairs"
            )
        own = tuple(place for place, is_own in drawn if is_own)
        return Negatives(own, tuple(place for place, is_own in drawn if not is_own))

    def check(self, places: Iterable[tuple[int, str]]) -> None:
        """
        Make sure that there are enough for these rows and sides, without drawing them all.

        Raises:
            ValueError: naming the first that has too few.
        """
        for row, side in places:
            known = len(self._partners[side].of(self.index.content[side][row]))
            if len(self._all[other_side(side)]) - known < self.num_negatives:
                self.draw(row, side)

    def _candidates(self, row: int, side: str) -> Iterator[tuple[int, bool]]:
        """Place and whether it is one of the pair's own, of all that may be drawn, in order."""
        content = self.index.content[other_side(side)]
        anchor, partners = int(self.index.content[side][row]), self._partners[side]
        seen: set[int] = set()
        stream = seeded_random(self.seed, "negatives", side, self.index.ids[row])
        of_task = self._of_task[other_side(side)][self.index.tasks[row]]
        everywhere = self._all[other_side(side)]
        own = self.index.negatives[row] if side == "query" else ()
        drawn = (int(pool[place]) for pool in (of_task, everywhere) for place in random_order(len(pool), stream))
        for place, number, is_own in chain(
            ((place, number, True) for place, number in enumerate(own)),
            ((place, int(content[place]), False) for place in drawn),
        ):
            if number not in seen and not partners.hold(anchor, number):
                seen.add(number)
                yield place, is_own


def _first_rows(content: npt.NDArray[np.int64], rows: Iterable[int]) -> npt.NDArray[np.int64]:
    """Of `rows`, the first of each content.

    >>> _first_rows(np.array([7, 8, 7, 9]), [1, 2, 3, 0]).tolist()
    [1, 2, 3]
    """
    rows = np.fromiter(rows, dtype=np.int64)
    _, first = np.unique(content[rows], return_index=True)
    return rows[np.sort(first)]
