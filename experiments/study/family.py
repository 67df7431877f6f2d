"""The differences that decide claims: one family, whose p values are corrected together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from mmemb_r1.evaluation.statistics import bootstrap_means, holm, paired_difference

CHANCE = 0.05  # what a corrected p has to be below
# What decides a claim -> where `summarise` puts it. All of these are corrected together, and nothing else is.
FAMILY: dict[str, tuple[str, ...]] = {
    "selection": ("rows", "no-selection", "differences", "multi-hop", "always"),
    "baseline": ("rows", "absolute", "differences", "multi-hop", "always"),
    "baseline, as published": ("rows", "absolute-probability", "control", "multi-hop", "always"),
    "wrong-pair correction": ("rows", "no-correction", "differences", "multi-hop", "always"),
    "errors": ("rows", "one-worker", "differences", "multi-hop", "always"),
    "rationale loss": ("rows", "no-rationale-loss", "differences", "multi-hop", "always"),
    "mixed terms": ("rows", "no-mixed-terms", "differences", "two-sided", "always"),
    "fixed mode": ("full", "gain"),
    "which input": ("rows", "random-gate", "differences", "all", "auto"),
    "grpo": ("rows", "no-grpo", "differences", "all", "auto"),
    "grpo's gate": ("rows", "no-grpo", "gates", "gain"),
    "best share, always": ("full", "best", "over_always"),
    "best share, never": ("full", "best", "over_never"),
    "model joins": ("rows", "model-joins", "control", "all", "auto"),
    "rounds": ("rows", "three-rounds", "differences", "neighbours", "auto"),
}


def difference_of(summary: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Look up a difference of `FAMILY`; `None` if it was not measured."""
    found: Any = summary
    for key in FAMILY[name]:
        if found is None or key not in found:
            return None
        found = found[key]
    return found


def correct(summary: Mapping[str, Any]) -> int:
    """
    Give every difference of the family that was measured a `p_corrected`: that of all of them together (Holm). Returns
    how many these are.
    """
    measured = [found for name in FAMILY if (found := difference_of(summary, name)) is not None]
    for one, value in zip(measured, holm([one["p"] for one in measured]) if measured else [], strict=True):
        one["p_corrected"] = value
    return len(measured)


def compared(
    before: npt.NDArray[Any],
    after: npt.NDArray[Any],
    entities: npt.NDArray[Any],
    tasks: npt.NDArray[Any],
    seeds: npt.NDArray[Any],
) -> dict[str, Any]:
    """
    How much higher scores of the same queries are, as a mean over tasks.

    Args:
        before, after: `(N,)` scores.
        entities: `(N,)` what the queries are about.
        tasks: `(N,)`.
        seeds: `(N,)` of the trainings that answered.

    Returns:
        `{"mean", "low", "high", "p"}`, as `paired_difference` has them; `theirs`, the mean before; `seeds`: the mean
        difference of each seed.
    """
    found = paired_difference(before, after, entities.tolist(), tasks.tolist())
    by_seed = {}
    for seed in sorted(set(seeds.tolist())):
        some = seeds == seed
        gain = (after[some].astype(float) - before[some].astype(float))[:, None]
        mean, _ = bootstrap_means(gain, entities[some].tolist(), tasks[some].tolist(), num_samples=1)
        by_seed[str(seed)] = float(mean[0])
    return {**found.difference._asdict(), "p": found.p, "theirs": found.a, "seeds": by_seed}


def direction(difference: Mapping[str, Any]) -> int:
    """
    1 or -1 if a difference is above or below zero beyond chance, else 0: its interval has to lie on one side, its
    corrected p below 0.05, and every seed on the same side.

    >>> direction({"low": 0.1, "high": 0.3, "p_corrected": 0.01, "seeds": {"0": 0.2, "1": 0.1}})
    1
    >>> direction({"low": 0.1, "high": 0.3, "p_corrected": 0.07, "seeds": {"0": 0.2}})
    0
    >>> direction({"low": -0.3, "high": -0.1, "p_corrected": 0.01, "seeds": {"0": -0.4, "1": 0.01}})
    0
    """
    sign = int(difference["low"] > 0) - int(difference["high"] < 0)
    alike = all(sign * value > 0 for value in difference["seeds"].values())
    return sign if difference["p_corrected"] < CHANCE and alike else 0
