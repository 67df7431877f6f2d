"""MatchExamples to learn from: pairs that match or not, without a rationale, with a right one, with a wrong one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from datasets import Dataset

from mmemb_r1.training.augment import Augment, augmented
from mmemb_r1.training.rationales.worker import SIDES
from mmemb_r1.training.selection.pairs import KnownMatches, PairIndex, index_pairs, other_side
from mmemb_r1.training.selection.trials import index_candidates
from mmemb_r1.training.tables import StoredInputs

KINDS = ("none", "right", "wrong")


class MatchExample(TypedDict):
    """Asks whether `target` matches `query`, given a rationale about the input of `side`; `label` is the answer."""

    query: dict[str, Any]
    target: dict[str, Any]
    side: str
    rationale: str | None
    kind: str
    label: bool


class MatchExamples:
    """
    Draws examples from a pairs table, each a pure function of the seed and its number.

    Half of them match. In one that doesn't, the other side is that of another pair of the same task. A wrong rationale
    is that of another pair of the same task, and then the wrong other side is often the one that this rationale
    describes: the evaluator learns to trust a rationale only as far as the inputs agree with it.

    Args:
        pairs: columns `pair_id`, `query`, `target` and, optionally, `task`, `query_rationale`, `target_rationale`
            (lists of segments).
        size: number of examples.
        seed: of the draws.
        shares: how often there is no rationale, a right one, and a wrong one. Rows without a rationale have none.
        tempting_share: how often a pair that doesn't match beside a wrong rationale is the one that it describes.
        blind_share: how often the pictures that a right rationale is about are hidden, where there is text beside
            them: what can't be seen has to be read.
        task_weights: how often each task is drawn; tasks without a weight are not. `None`: by number of pairs.
        augment: makes another picture of every picture; gets the example's own random stream.
        rationales: a rationales table of trusted workers, instead of the columns of `pairs`. With several per input
            the evaluator meets several wordings of the truth; otherwise it takes another wording for a mistake.

    Raises:
        ValueError: if `check_pairs` refuses the table, no task has pairs that differ, or a weighted task has no pairs.
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
        self._matches = {side: KnownMatches(index, side) for side in SIDES}
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
            # a task with one query or target for all pairs has no wrong pair
            if all(len(np.unique(self._content[side][members])) > 1 for side in SIDES)
        }
        if not self._rows:
            raise ValueError(
                "No task has pairs with different queries and targets, so no wrong pair can be made. Add pairs."
            )
        weights = np.array(
            [task_weights[task] if task_weights else len(self._rows[task]) for task in self._rows], float
        )
        self._tasks, self._weights = list(self._rows), weights / weights.sum()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> MatchExample:
        if not 0 <= index < self.size:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, index])
        rows = self._rows[self._tasks[rng.choice(len(self._tasks), p=self._weights)]]
        row = int(rng.choice(rows))
        side = self._side(row, rng)
        other = other_side(side)
        kind = KINDS[rng.choice(3, p=self.shares)] if self._rationales[side][row] else "none"
        described = self._other_rationale(side, row, rows, rng) if kind == "wrong" else row
        if described is None:  # the whole task has the same rationale
            kind, described = "right", row
        rationale = None if kind == "none" else str(rng.choice(self._rationales[side][described]))
        label = bool(rng.random() < 0.5)
        paired = row if label else self._wrong_pair(side, row, described, rows, rng)
        if paired is None:  # every pair of this task matches this row
            label, paired = True, row
        inputs = {side: self._inputs[side][row], other: self._inputs[other][paired]}
        if kind == "right" and inputs[side].get("text") and rng.random() < self.blind_share:
            inputs[side] = {name: value for name, value in inputs[side].items() if name not in ("image", "video")}
        if (augment := self.augment) is not None:
            inputs = {name: augmented(value, augment, rng) for name, value in inputs.items()}
        return MatchExample(
            query=inputs["query"], target=inputs["target"], side=side, rationale=rationale, kind=kind, label=label
        )

    def _side(self, row: int, rng: np.random.Generator) -> str:
        sides = [side for side in SIDES if self._rationales[side][row]] or list(SIDES)
        return sides[rng.integers(len(sides))]

    def _other_rationale(self, side: str, row: int, rows: np.ndarray, rng: np.random.Generator) -> int | None:
        """Draw a row with another rationale, about another pair than this row's; `None` if there hardly is one."""
        rationales = self._rationales[side]
        own = set(rationales[row])
        return self._draw_wrong(
            side, row, rows, rng, lambda one: bool(rationales[one]) and not own & set(rationales[one])
        )

    def _wrong_pair(
        self, side: str, row: int, described: int, rows: np.ndarray, rng: np.random.Generator
    ) -> int | None:
        """Draw a row whose other side doesn't match this row; often the one that a wrong rationale describes."""
        if described != row and rng.random() < self.tempting_share:
            return described
        return self._draw_wrong(side, row, rows, rng)

    def _draw_wrong(
        self,
        side: str,
        row: int,
        rows: np.ndarray,
        rng: np.random.Generator,
        allowed: Callable[[int], bool] = lambda one: True,
        tries: int = 20,
    ) -> int | None:
        anchor, content, matches = self._content[side][row], self._content[other_side(side)], self._matches[side]
        drawn = rng.choice(rows, size=tries).tolist()
        return next((one for one in drawn if allowed(one) and not matches.include(anchor, content[one])), None)


def _own(pairs: Dataset) -> dict[str, list[list[str]]]:
    """Read the rationales of each row, by side, from the table's own columns; empty where there is none."""
    found: dict[str, list[list[str]]] = {}
    for side in SIDES:
        column = pairs[f"{side}_rationale"] if f"{side}_rationale" in pairs.column_names else [None] * len(pairs)
        texts = [" ".join(value) if isinstance(value, list) else value or "" for value in column]
        found[side] = [[text] if text else [] for text in texts]
    return found


def _proposed(rationales: Dataset, index: PairIndex) -> dict[str, list[list[str]]]:
    """Read the rationales of each row, by side, from a rationales table."""
    candidates = index_candidates(rationales, index)
    found: dict[str, list[list[str]]] = {side: [[] for _ in range(len(index))] for side in SIDES}
    texts = rationales["text"]
    for number in range(len(candidates)):
        group = candidates[number]
        found[group.side][group.pair] = [texts[row] for row in group.rows if candidates.unusable[row] is None]
    return found
