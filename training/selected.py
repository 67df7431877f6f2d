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
    """A rationale, its posterior, and the parts of it that may become rounds; without any, the whole is one."""

    text: str
    posterior: float
    segments: tuple[str, ...]


class SelectedRationales:
    """
    The rationales that were kept of each pair and side, with their posterior.

    Args:
        table: what `mmemb-r1 select` wrote: the columns `pair_id`, `side`, `text` and, optionally, `posterior`
            (without it all of a pair's rationales are equally likely), `worker`, and `segments`, the parts of each
            text that become rounds where more than one is trained.

    Raises:
        ValueError: if a column is missing, the table is empty, a side is unknown, a text or a segment blank, or a
            posterior no positive number.
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
        segments = (
            stored_column(table, "segments").to_pylist()
            if "segments" in table.column_names
            else [[text] for text in columns["text"]]
        )
        kept: dict[tuple[str, str], list[Drawn]] = defaultdict(list)
        rows = zip(*columns.values(), posteriors, segments, strict=True)
        for row, (pair_id, side, text, posterior, parts) in enumerate(rows):
            _check_row(row, side, text, posterior, parts)
            kept[pair_id, side].append(Drawn(text, posterior, tuple(parts)))
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
        place = int(np.searchsorted(np.cumsum([one.posterior for one in candidates]), number, side="right"))
        return candidates[min(place, len(candidates) - 1)]  # the sum may end a rounding below 1


def _normalised(candidates: list[Drawn]) -> list[Drawn]:
    posteriors = np.array([one.posterior for one in candidates])
    shares = (posteriors / posteriors.sum()).tolist()
    return [one._replace(posterior=share) for one, share in zip(candidates, shares, strict=True)]


def _check_row(row: int, side: Any, text: Any, posterior: Any, segments: Any) -> None:
    found = None
    if side not in ("query", "target"):
        found = f"the side {side!r}; allowed: query, target"
    elif not isinstance(text, str) or not text.strip():
        found = f"the text {text!r}; allowed: text that is not blank"
    elif posterior is None or not math.isfinite(posterior) or posterior <= 0:
        found = f"the posterior {posterior!r}; allowed: numbers above 0. Only what was kept belongs here"
    elif not segments or not all(isinstance(part, str) and part.strip() for part in segments):
        found = f"the segments {segments!r}; allowed: a list of texts that are not blank"
    if found:
        raise ValueError(f"The selected table has in row {row}, counted from 0, {found}.")
