"""Judgements to learn from: pairs that match or not, without a rationale, with a right one, with a wrong one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from datasets import Dataset

from mmemb_r1.training.augment import Augment, augmented
from mmemb_r1.training.rationales.worker import SIDES
from mmemb_r1.training.selection.pairs import PairIndex, Partners, index_pairs, other_side
from mmemb_r1.training.selection.trials import index_candidates
from mmemb_r1.training.tables import StoredInputs

KINDS = ("none", "right", "wrong")


class Judgement(TypedDict):
    """One example: does `target` match `query`, given `rationale` about the input of `side`?"""

    query: dict[str, Any]
    target: dict[str, Any]
    side: str
    rationale: str | None
    kind: str
    label: bool


class Judgements:
    """
    Examples drawn from a pairs table, each a pure function of the seed and its number.

    Half of them match. The partner of one that doesn't comes from another pair of the same task; beside a wrong
    rationale, which is that of another pair of the same task, it is often the very partner that this rationale speaks
    of, so that a rationale may be trusted only as far as what is seen agrees with it.

    Args:
        pairs: columns `pair_id`, `query`, `target` and, optionally, `task`, `query_rationale`, `target_rationale`
            (lists of segments).
        size: number of examples.
        seed: of the draws.
        shares: how often there is no rationale, a right one, and a wrong one. Rows without a rationale have none.
        tempting_share: how often a pair that does not match beside a wrong rationale is the one that it speaks of.
        blind_share: how often the pictures that a right rationale is about are hidden, where there is text beside
            them: what can't be seen has to be read.
        task_weights: how often each task is drawn; those that are not named are not. `None`: by number of pairs.
        rationales: a rationales table, of workers to be trusted, in the place of the columns of `pairs`. With several
            per input the evaluator meets more than one wording of the truth; else it takes another for a mistake.
        augment: makes another picture of every picture; gets the example's own random stream.

    Raises:
        ValueError: if the table is none of pairs, no task has pairs that differ, or a task that is named has no pairs.
    """

    def __init__(
        self,
        pairs: Dataset,
        size: int,
        seed: int = 0,
        shares: Sequence[float] = (0.25, 0.45, 0.3),
        tempting_share: float = 0.5,
        blind_share: float = 0.0,
        task_weights: Mapping[str, float] | None = None,
        augment: Augment | None = None,
        rationales: Dataset | None = None,
    ) -> None:
        self.size, self.seed, self.augment = size, seed, augment
        self.shares = np.asarray(shares, dtype=float) / sum(shares)
        self.tempting_share, self.blind_share = tempting_share, blind_share
        index = index_pairs(pairs)
        self._content = index.content
        self._inputs = {side: StoredInputs(pairs, side) for side in SIDES}
        self._partners = {side: Partners(index, side) for side in SIDES}
        self._rationales = _own(pairs) if rationales is None else _proposed(rationales, index)
        rows: dict[str, list[int]] = defaultdict(list)
        for row, task in enumerate(index.tasks):
            rows[task].append(row)
        if unknown := sorted(set(task_weights or ()) - set(rows)):
            raise ValueError(f"task_weights names the task {unknown[0]!r}; the table has {', '.join(sorted(rows))}.")
        self._rows = {
            task: np.array(members)
            for task, members in sorted(rows.items())
            if task_weights is None or task_weights.get(task, 0) > 0
            # one query or target for all pairs of a task: nothing there could be wrong
            if all(len(np.unique(self._content[side][members])) > 1 for side in SIDES)
        }
        if not self._rows:
            raise ValueError(
                "No task has pairs with different queries and targets, so no pair can be made that does not match."
            )
        weights = np.array(
            [task_weights[task] if task_weights else len(self._rows[task]) for task in self._rows], float
        )
        self._tasks, self._weights = list(self._rows), weights / weights.sum()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Judgement:
        if not 0 <= index < self.size:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, index])
        rows = self._rows[self._tasks[rng.choice(len(self._tasks), p=self._weights)]]
        row = int(rng.choice(rows))
        side = self._side(row, rng)
        other = other_side(side)
        kind = KINDS[rng.choice(3, p=self.shares)] if self._rationales[side][row] else "none"
        spoken_of = self._other_rationale(side, row, rows, rng) if kind == "wrong" else row
        if spoken_of is None:  # all of this task have the same one
            kind, spoken_of = "right", row
        rationale = None if kind == "none" else str(rng.choice(self._rationales[side][spoken_of]))
        label = bool(rng.random() < 0.5)
        partner = row if label else self._wrong_partner(side, row, spoken_of, rows, rng)
        if partner is None:  # every partner of this task is right for this row
            label, partner = True, row
        inputs = {side: self._inputs[side][row], other: self._inputs[other][partner]}
        if kind == "right" and inputs[side].get("text") and rng.random() < self.blind_share:
            inputs[side] = {name: value for name, value in inputs[side].items() if name not in ("image", "video")}
        if (augment := self.augment) is not None:
            inputs = {name: augmented(value, augment, rng) for name, value in inputs.items()}
        return Judgement(
            query=inputs["query"], target=inputs["target"], side=side, rationale=rationale, kind=kind, label=label
        )

    def _side(self, row: int, rng: np.random.Generator) -> str:
        sides = [side for side in SIDES if self._rationales[side][row]] or list(SIDES)
        return sides[rng.integers(len(sides))]

    def _other_rationale(self, side: str, row: int, rows: np.ndarray, rng: np.random.Generator) -> int | None:
        """A row whose rationale is another one and speaks of no partner of this row; `None` if there hardly is one."""
        rationales, content = self._rationales[side], self._content[other_side(side)]
        anchor, partners = self._content[side][row], self._partners[side]
        return _draw(
            rows,
            rng,
            lambda candidate: (
                bool(rationales[candidate])
                and not set(rationales[candidate]) & set(rationales[row])
                and not partners.hold(anchor, content[candidate])
            ),
        )

    def _wrong_partner(
        self, side: str, row: int, spoken_of: int, rows: np.ndarray, rng: np.random.Generator
    ) -> int | None:
        if spoken_of != row and rng.random() < self.tempting_share:
            return spoken_of
        anchor, content, partners = self._content[side][row], self._content[other_side(side)], self._partners[side]
        return _draw(rows, rng, lambda candidate: not partners.hold(anchor, content[candidate]))


def _draw(rows: np.ndarray, rng: np.random.Generator, allowed: Callable[[int], bool], tries: int = 20) -> int | None:
    """A row for which `allowed` holds, by trial; `None` if there hardly is one."""
    return next((row for row in rng.choice(rows, size=tries).tolist() if allowed(row)), None)


def _own(pairs: Dataset) -> dict[str, list[list[str]]]:
    """Side -> the rationales of each row, from the table's own columns; empty where there is none."""
    found: dict[str, list[list[str]]] = {}
    for side in SIDES:
        column = pairs[f"{side}_rationale"] if f"{side}_rationale" in pairs.column_names else [None] * len(pairs)
        texts = [" ".join(value) if isinstance(value, list) else value or "" for value in column]
        found[side] = [[text] if text else [] for text in texts]
    return found


def _proposed(rationales: Dataset, index: PairIndex) -> dict[str, list[list[str]]]:
    """The same, from a rationales table."""
    candidates = index_candidates(rationales, index)
    found: dict[str, list[list[str]]] = {side: [[] for _ in range(len(index))] for side in SIDES}
    texts = rationales["text"]
    for number in range(len(candidates)):
        group = candidates[number]
        found[group.side][group.pair] = [texts[row] for row in group.rows if candidates.unusable[row] is None]
    return found
