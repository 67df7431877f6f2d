"""Summarise the outcomes of one or several seeds: the modes, what a choice between them could gain, and the gate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from datasets import Dataset

from experiments.pipeline.outcomes import OUTCOMES_FILE, Columns, answers_of, measure_outcomes
from mmemb_r1.evaluation import invocation as adaptivity
from mmemb_r1.evaluation.invocation import Answers
from mmemb_r1.evaluation.statistics import clustered_bootstrap
from mmemb_r1.runs import made_whole

COMPLEXITIES = ("simple", "multi-hop", "perceptual", "mixed")
MEANS = ("never", "always", "auto", "oracle", "invocation", "tokens", "tokens_always")


def outcomes_in(checkpoint: Path, pairs: Dataset, candidates: Dataset, folder: Path) -> Columns:
    """
    Evaluate one model with `measure_outcomes`: columns with a row per query. Kept in a folder.

    Args:
        checkpoint: the model's folder.
        pairs: whose queries are asked.
        candidates: of the Atlas.
        folder: where the outcomes are, or will be.
    """

    def make(made: Path) -> None:
        made.mkdir(parents=True)
        measure_outcomes(checkpoint, pairs, candidates, made)

    made_whole(folder, make)
    return read_outcomes(folder)


def read_outcomes(folder: Path) -> Columns:
    """Read the columns of a folder of outcomes."""
    return pq.read_table(folder / OUTCOMES_FILE).to_pydict()


def joined(tables: Sequence[Columns]) -> dict[str, npt.NDArray[Any]]:
    """The rows of all seeds, one after another; entities keep their names, so that a country is one cluster."""
    return {name: np.concatenate([np.array(table[name]) for table in tables]) for name in tables[0]}


def summarise(rows: dict[str, npt.NDArray[Any]], threshold: float) -> dict[str, Any]:
    """
    Equal-weight means over tasks, each with its 95 % interval by country.

    Returns:
        For `all` and each of `COMPLEXITIES` that there is: R@1 of `never`, `always`, `auto` at the threshold, the
        `oracle` that chooses best for each query; `gain`, auto minus the better fixed mode; `invocation`; `tokens` of
        auto and of always; `headroom`, oracle minus the better fixed mode, and `captured`, the share of it that auto
        gains.
    """
    answers = answers_of(rows)
    return {
        name: _summary(answers.where(where), threshold)
        for name in ("all", *COMPLEXITIES)
        for where in [np.ones(len(rows["task"]), bool) if name == "all" else rows["complexity"] == name]
        if where.any()
    }


def _summary(answers: Answers, threshold: float) -> dict[str, Any]:
    choice = adaptivity.judge_choice(answers, answers.thinks(threshold))
    return {name: list(getattr(choice, name)) for name in MEANS} | {
        "better_fixed": choice.better_fixed,
        "gain": list(choice.gain),
        "headroom": choice.headroom.mean,
        "queries": choice.queries,
        "captured": None if choice.captured is None else choice.captured.mean,
    }


def by_task(rows: dict[str, npt.NDArray[Any]], threshold: float) -> dict[str, dict[str, float]]:
    """R@1 of the modes, and how often the gate thinks, per task."""
    table = {}
    for task in sorted(set(rows["task"].tolist())):
        answers = answers_of(rows).where(rows["task"] == task)
        thinks = answers.thinks(threshold)
        table[task] = {
            "queries": len(thinks),
            "never": float(answers.never.mean()),
            "always": float(answers.always.mean()),
            "auto": float(adaptivity.choice_scores(answers, thinks).mean()),
            "oracle": float(adaptivity.oracle(answers).mean()),
            "invocation": float(thinks.mean()),
            "tokens": float(np.where(thinks, answers.tokens, 0).mean()),
        }
    return table


def gate_quality(rows: dict[str, npt.NDArray[Any]]) -> dict[str, float]:
    """The gate against the sign of the true utility gap, where that is at least 0.1 in size."""
    quality = adaptivity.gate_quality(answers_of(rows))
    if quality is None or quality.auc is None:
        raise ValueError("no queries of both signs of the utility gap: the gate cannot be evaluated")
    return {"auc": quality.auc.mean, "share": quality.share}


def curve(rows: dict[str, npt.NDArray[Any]], points: int = 21) -> list[dict[str, float]]:
    """R@1 (equal-weight over tasks) as the threshold sweeps from thinking never to always, with intervals."""
    return [
        {
            "threshold": min(point.threshold, 1.1),
            "invocation": point.share,
            "r1": point.score.mean,
            "low": point.score.low,
            "high": point.score.high,
        }
        for point in adaptivity.invocation_curve(answers_of(rows), np.linspace(0, 1, points).tolist())
    ]


def interior(rows: dict[str, npt.NDArray[Any]], points: list[dict[str, float]]) -> dict[str, Any]:
    """The best point of a curve, and by how much it beats both ends (chosen on these rows: optimistic)."""
    best, answers = max(points, key=lambda point: point["r1"]), answers_of(rows)
    auto = adaptivity.choice_scores(answers, answers.thinks(best["threshold"]))
    against = {}
    for mode in ("never", "always"):
        difference = auto - rows[mode]
        against[mode] = list(clustered_bootstrap(difference, rows["entity"].tolist(), rows["task"].tolist()))
    return {"best": best, "against": against}
