"""Selected rationales, and drawing one of them: a rationale is latent, not fixed."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmemb_r1.training.tables import stored_column

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("pair_id", "side", "text")


class Drawn(NamedTuple):
    """A rationale and its posterior."""

    text: str
    posterior: float


class SelectedRationales:
    """
    The rationales that were kept of each pair and side, with their posterior.

    Args:
        table: what `mmemb-r1 select` wrote: the columns `pair_id`, `side`, `text` and, optionally, `posterior`
            (without it all of a pair's rationales are equally likely) and `worker`.

    Raises:
        ValueError: if a column is missing, the table is empty, a side is unknown, a text blank, or a posterior no
            positive number.
    """

    def __init__(self, table: Dataset) -> None:
        if missing := [name for name in COLUMNS if name not in table.column_names]:
            raise ValueError(
                f"The selected table has no column {missing[0]!r}; it has: {', '.join(table.column_names) or 'none'}. "
                "Give it selected.parquet, as `mmemb-r1 select` writes it."
            )
        if len(table) == 0:
            raise ValueError(
                "The selected table has no rows: nothing was kept. Select with another margin, or without."
            )
        columns = {name: stored_column(table, name).to_pylist() for name in COLUMNS}
        posteriors = (
            stored_column(table, "posterior").to_pylist() if "posterior" in table.column_names else [1.0] * len(table)
        )
        kept: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
        for row, (pair_id, side, text, posterior) in enumerate(zip(*columns.values(), posteriors, strict=True)):
            _check_row(row, side, text, posterior)
            kept[pair_id, side].append((text, posterior))
        self._kept = {key: _normalised(candidates) for key, candidates in kept.items()}
        self.pair_ids = {pair_id for pair_id, _ in self._kept}
        self.num_rationales = len(table)
        workers = stored_column(table, "worker").to_pylist() if "worker" in table.column_names else []
        self.workers = dict(sorted(Counter(workers).items()))

    def draw(self, pair_id: str, side: str, rng: np.random.Generator) -> Drawn | None:
        """
        One rationale of a pair's side, from the posterior.

        Args:
            pair_id: of the pair.
            side: `"query"` or `"target"`.
            rng: one number is drawn from it, also where there is nothing to draw.

        Returns:
            The rationale and its posterior (1 is the whole side's); `None` if nothing was kept.
        """
        number = rng.random()
        candidates = self._kept.get((pair_id, side))
        if candidates is None:
            return None
        texts, posteriors = candidates
        place = int(np.searchsorted(np.cumsum(posteriors), number, side="right"))
        place = min(place, len(texts) - 1)  # the sum may end a rounding below 1
        return Drawn(texts[place], float(posteriors[place]))


def _normalised(candidates: list[tuple[str, float]]) -> tuple[list[str], np.ndarray]:
    posteriors = np.array([posterior for _, posterior in candidates])
    return [text for text, _ in candidates], posteriors / posteriors.sum()


def _check_row(row: int, side: Any, text: Any, posterior: Any) -> None:
    found = None
    if side not in ("query", "target"):
        found = f"the side {side!r}; allowed: query, target"
    elif not isinstance(text, str) or not text.strip():
        found = f"the text {text!r}; allowed: text that is not blank"
    elif posterior is None or not math.isfinite(posterior) or posterior <= 0:
        found = f"the posterior {posterior!r}; allowed: numbers above 0. Only what was kept belongs here"
    if found:
        raise ValueError(f"The selected table has in row {row}, counted from 0, {found}.")
