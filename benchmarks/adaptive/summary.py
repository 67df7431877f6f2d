"""What the answers of one or several seeds say: the modes, what a choice between them could gain, and the gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.bootstrap import clustered_bootstrap

Columns = dict[str, list[Any]]
Rows = npt.NDArray[np.float64]
COMPLEXITIES = ("simple", "multi-hop")
LEAST_GAP = 0.1  # of the utility gap's size, for the gate to be judged by its sign


def joined(tables: Sequence[Columns]) -> dict[str, npt.NDArray[Any]]:
    """The rows of all seeds, one after another; entities keep their names, so that a country is one cluster."""
    return {name: np.concatenate([np.array(table[name]) for table in tables]) for name in tables[0]}


def summarise(rows: dict[str, npt.NDArray[Any]], threshold: float) -> dict[str, Any]:
    """
    Equal-weight means over tasks, each with its 95 % interval by country.

    Returns:
        For `all`, `simple` and `multi-hop`: R@1 of `never`, `always`, `auto` at the threshold, the `oracle` that
        chooses best for each query; `gain`, auto minus the better fixed mode; `invocation`; `tokens` of auto and of
        always; `headroom`, oracle minus the better fixed mode, and `captured`, the share of it that auto gains.
    """
    return {
        name: _summary({key: value[where] for key, value in rows.items()}, threshold)
        for name in ("all", *COMPLEXITIES)
        for where in [np.ones(len(rows["task"]), bool) if name == "all" else rows["complexity"] == name]
        if where.any()
    }


def _summary(rows: dict[str, npt.NDArray[Any]], threshold: float) -> dict[str, Any]:
    thinks = rows["gate_prob"] >= threshold
    found = {
        "never": rows["never"],
        "always": rows["always"],
        "auto": np.where(thinks, rows["always"], rows["never"]),
        "oracle": np.maximum(rows["always"], rows["never"]),
        "invocation": thinks,
        "tokens": np.where(thinks, rows["tokens"], 0),
        "tokens_always": rows["tokens"],
    }

    def interval(values: npt.NDArray[Any]) -> list[float]:
        return list(clustered_bootstrap(values.astype(float), rows["entity"].tolist(), rows["task"].tolist()))

    summary: dict[str, Any] = {name: interval(values) for name, values in found.items()}
    fixed = max(("never", "always"), key=lambda mode: summary[mode][0])
    summary |= {
        "better_fixed": fixed,
        "gain": interval(found["auto"].astype(float) - found[fixed]),
        "headroom": summary["oracle"][0] - summary[fixed][0],
        "queries": len(thinks),
    }
    summary["captured"] = summary["gain"][0] / summary["headroom"] if summary["headroom"] > 0 else None
    return summary


def by_task(rows: dict[str, npt.NDArray[Any]], threshold: float) -> dict[str, dict[str, float]]:
    """R@1 of the modes, and how often the gate thinks, per task."""
    table = {}
    for task in sorted(set(rows["task"].tolist())):
        where = rows["task"] == task
        thinks = rows["gate_prob"][where] >= threshold
        never, always = rows["never"][where], rows["always"][where]
        table[task] = {
            "queries": int(where.sum()),
            "never": float(never.mean()),
            "always": float(always.mean()),
            "auto": float(np.where(thinks, always, never).mean()),
            "oracle": float(np.maximum(never, always).mean()),
            "invocation": float(thinks.mean()),
            "tokens": float(np.where(thinks, rows["tokens"][where], 0).mean()),
        }
    return table


def gate_quality(rows: dict[str, npt.NDArray[Any]]) -> dict[str, float]:
    """The gate against the sign of the true utility gap, where that is at least [`LEAST_GAP`] in size."""
    gap = rows["aligned_always"] - rows["aligned_never"]
    counted = np.abs(gap) >= LEAST_GAP
    return {"auc": area(rows["gate_prob"][counted], gap[counted] > 0), "share": float(counted.mean())}


def area(scores: Rows, positive: npt.NDArray[np.bool_]) -> float:
    """
    Area under the ROC curve: how often a positive scores above a negative, ties counting half.

    >>> area(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
    0.875
    """
    above = scores[positive][:, None] - scores[~positive]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def curve(rows: dict[str, npt.NDArray[Any]], points: int = 21) -> list[dict[str, float]]:
    """R@1 (equal-weight over tasks) as the threshold sweeps from thinking never to always, with intervals."""
    order = np.sort(rows["gate_prob"])[::-1]
    found = []
    for share in np.linspace(0, 1, points):
        number = round(share * len(order))
        threshold = np.inf if number == 0 else order[number - 1]
        thinks = rows["gate_prob"] >= threshold
        auto = np.where(thinks, rows["always"], rows["never"]).astype(float)
        mean, low, high = clustered_bootstrap(auto, rows["entity"].tolist(), rows["task"].tolist())
        found.append(
            {
                "threshold": float(min(threshold, 1.1)),
                "invocation": float(thinks.mean()),
                "r1": mean,
                "low": low,
                "high": high,
            }
        )
    return found


def interior(rows: dict[str, npt.NDArray[Any]], points: list[dict[str, float]]) -> dict[str, Any]:
    """The best point of a curve, and by how much it beats both ends (chosen on these rows: optimistic)."""
    best = max(points, key=lambda point: point["r1"])
    thinks = rows["gate_prob"] >= best["threshold"]
    auto = np.where(thinks, rows["always"], rows["never"]).astype(float)
    against = {}
    for mode in ("never", "always"):
        difference = auto - rows[mode]
        against[mode] = list(clustered_bootstrap(difference, rows["entity"].tolist(), rows["task"].tolist()))
    return {"best": best, "against": against}
