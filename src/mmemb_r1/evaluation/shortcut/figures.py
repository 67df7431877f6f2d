"""Scores and vectors with another rationale in the place of the own one: their means, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.shortcut.verdict import judge
from mmemb_r1.evaluation.statistics import Interval, clustered_means
from mmemb_r1.evaluation.statistics.bootstrap import NUM_SAMPLES

Floats = npt.NDArray[np.float64]
# What stands in the place of a query's own rationale: nothing, the direct vector; an empty one; another query's; its
# own words in another order.
INTERVENTIONS = ("drop", "empty", "swap", "shuffle")


@dataclass(frozen=True)
class Trials:
    """
    What N queries got with their own rationales and with others.

    Args:
        task: `(N,)` names.
        cluster: `(N,)` what the queries are about.
        tokens: `(N,)` of their own rationales.
        own: `(N,)` scores with their own rationales.
        others: `(N,)` cosine of each query's vector and that of the query whose rationale it is given by `swap`, both
            after their own rationales; NaN where there is none.
        scores: intervention -> `(N,)` scores; NaN where it changes nothing.
        cosines: intervention -> `(N,)` cosines of the vector and that after the own rationale; NaN likewise.

    Raises:
        ValueError: if there are no queries, or lengths differ.
    """

    task: npt.NDArray[Any]
    cluster: npt.NDArray[Any]
    tokens: npt.NDArray[Any]
    own: Floats
    others: Floats
    scores: dict[str, Floats]
    cosines: dict[str, Floats]

    def __post_init__(self) -> None:
        columns = {"cluster": self.cluster, "tokens": self.tokens, "own": self.own, "others": self.others}
        columns |= {f"scores[{name!r}]": values for name, values in self.scores.items()}
        columns |= {f"cosines[{name!r}]": values for name, values in self.cosines.items()}
        for name, values in columns.items():
            if values.shape != (len(self.task),) or not len(self.task):
                raise ValueError(f"{name} has the shape {values.shape}; expected one per query, ({len(self.task)},)")


def summarise(
    trials: Trials, tasks: Sequence[str] | None = None, *, num_samples: int = NUM_SAMPLES, seed: int = 0
) -> dict[str, Any]:
    """
    Means with 95 % intervals from draws of whole clusters, every task having the same weight.

    An intervention's figures are those of the queries that it changes something for.

    Args:
        trials: N queries.
        tasks: of which. Default: of all.
        num_samples: draws. Default: 2000.
        seed: of the draws.

    Returns:
        What JSON can hold: `n`; `score` with their own rationales and `mean_reasoning_tokens`; `interventions`, per
        name `n`, `clusters`, `score`, `cost` (own score minus that) and `cosine`, or `None` where none changes
        anything; `cosine_between_queries`; `verdict` and `reason`. Numbers with an interval are `{"mean", "low",
        "high"}`.

    Raises:
        ValueError: if there is no query of these tasks.
    """
    chosen = np.ones(len(trials.task), dtype=bool) if tasks is None else np.isin(trials.task, list(tasks))
    if not chosen.any():
        raise ValueError(f"there are no queries of the tasks {list(tasks or [])}")

    def means(rows: npt.NDArray[np.bool_], **columns: npt.NDArray[Any]) -> dict[str, Interval]:
        some = {name: column[rows] for name, column in columns.items()}
        clusters, names = trials.cluster[rows].tolist(), trials.task[rows].tolist()
        return clustered_means(some, clusters, names, num_samples=num_samples, seed=seed)

    interventions: dict[str, dict[str, Any] | None] = {}
    cost, cosine, clusters = None, None, 0
    for name, scores in trials.scores.items():
        rows = chosen & ~np.isnan(scores)
        if not rows.any():
            interventions[name] = None
            continue
        numbers = means(rows, score=scores, cost=trials.own - scores, cosine=trials.cosines[name])
        counts = {"n": int(rows.sum()), "clusters": len(set(trials.cluster[rows].tolist()))}
        interventions[name] = {**counts, **{key: value._asdict() for key, value in numbers.items()}}
        if name == "swap":
            cost, cosine, clusters = numbers["cost"], numbers["cosine"].mean, counts["clusters"]
    own = means(chosen, score=trials.own, tokens=trials.tokens)
    paired = chosen & ~np.isnan(trials.others)
    between = means(paired, others=trials.others)["others"].mean if paired.any() else None
    verdict = judge(cost, cosine, between, clusters)
    return {
        "n": int(chosen.sum()),
        "score": own["score"]._asdict(),
        "mean_reasoning_tokens": own["tokens"].mean,
        "interventions": interventions,
        "cosine_between_queries": between,
        "verdict": verdict.name,
        "reason": verdict.reason,
    }
