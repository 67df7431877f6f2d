"""Measure how well selection separates helpful rationales from others, where it is known which are which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt


class Quality(TypedDict):
    """
    Numbers of one selection.

    Attributes:
        rationales: how many were scored.
        base_rate: share of helpful ones, the precision of keeping everything.
        precision: share of helpful ones among the kept.
        recall: share of kept ones among the helpful.
        average_precision: of the ranking by gain, whatever the margin.
        precision_at_recall: best precision at a margin that keeps at least 80 % of the helpful ones.
    """

    rationales: int
    base_rate: float
    precision: float
    recall: float
    average_precision: float
    precision_at_recall: float


RECALL = 0.8


def selection_quality(gain: npt.ArrayLike, kept: Sequence[bool], helpful: Sequence[bool]) -> Quality:
    """
    Score a selection against what is known.

    Args:
        gain: `(N,)` what was compared with the margin; NaN for rationales without a score, which are left out.
        kept: `(N,)` whether it was kept.
        helpful: `(N,)` whether it helps.

    Raises:
        ValueError: if the three differ in length, or nothing helpful (or nothing else) was scored.

    >>> quality = selection_quality([0.9, 0.2, 0.1, -0.5], [True, True, True, False], [True, False, True, False])
    >>> round(quality["precision"], 3), quality["recall"], quality["base_rate"]
    (0.667, 1.0, 0.5)
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    gains, keeps, helps = np.asarray(gain, dtype=float), np.asarray(kept, dtype=bool), np.asarray(helpful, dtype=bool)
    if not len(gains) == len(keeps) == len(helps):
        raise ValueError(f"got {len(gains)} gains, {len(keeps)} marks of what was kept and {len(helps)} of what helps")
    scored = ~np.isnan(gains)
    gains, keeps, helps = gains[scored], keeps[scored], helps[scored]
    if helps.all() or not helps.any():
        raise ValueError(f"of {len(helps)} rationales with a score, {int(helps.sum())} help: both kinds are needed")
    both = int((keeps & helps).sum())
    precision, recall, _ = precision_recall_curve(helps, gains)
    return Quality(
        rationales=len(gains),
        base_rate=float(helps.mean()),
        precision=both / int(keeps.sum()) if keeps.any() else float("nan"),
        recall=both / int(helps.sum()),
        average_precision=float(average_precision_score(helps, gains)),
        precision_at_recall=float(precision[recall >= RECALL].max()),
    )
