"""
Does a model read its rationales? Scores and vectors with another rationale in the place of its own.

Contrastive training can teach a model to write rationales and pass them by: the shortcut. Then its vectors stay where
they are whatever stands between `<think>` and `</think>`. The verdict goes by the rationale of another query (`swap`),
which has the form of the own one and not its content. Where the thresholds come from is in docs/diagnose.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.bootstrap import NUM_SAMPLES, Interval, bootstrap_means, interval_of

Floats = npt.NDArray[np.float64]

# What stands in the place of a query's own rationale: nothing, the direct vector; an empty one; another query's; its
# own words in another order.
INTERVENTIONS = ("drop", "empty", "swap", "shuffle")
READS, IGNORES, UNDECIDED = "reads", "ignores", "undecided"
READS_COST, READS_COSINE = 0.10, 0.80  # from this cost on, or up to this cosine
IGNORES_COST, IGNORES_COSINE = 0.05, 0.95  # below this cost, and from this cosine on
LEAST_CLUSTERS = 20  # of swapped queries: draws of fewer vary too little


class Verdict(NamedTuple):
    """
    Attributes:
        name: `"reads"`, `"ignores"` or `"undecided"`.
        reason: one sentence with the figures.
    """

    name: str
    reason: str


def judge(cost: Interval | None, cosine: float | None, clusters: int) -> Verdict:
    """
    Whether a model reads its rationales [ours].

    It reads them if swapping them lowers the score beyond chance, and either the cost or the way that the vectors go
    is large. It ignores them if the vectors stay where they are and the cost, if there is any, is small. Otherwise
    there is no verdict: where thoughts make no difference to what is found, scores can't show whether they are read.

    Args:
        cost: of the swap, own score minus swapped, as a share of 1, with its interval; `None` if nothing was swapped.
        cosine: of the vectors after the own rationale and after the swapped one, mean.
        clusters: of the queries that were swapped.

    >>> judge(Interval(0.31, 0.27, 0.35), 0.55, clusters=200).name
    'reads'
    >>> judge(Interval(0.002, -0.004, 0.008), 0.97, clusters=200).name
    'ignores'
    >>> judge(Interval(0.002, -0.004, 0.008), 0.55, clusters=200).name
    'undecided'
    """
    if cost is None or cosine is None:
        return Verdict(UNDECIDED, "no query has another's rationale to be swapped with: they are all the same.")
    figures = (
        f"swapping rationales costs {100 * cost.mean:.1f} points [{100 * cost.low:.1f}, {100 * cost.high:.1f}], and "
        f"the vectors' cosine is {cosine:.2f}"
    )
    if clusters < LEAST_CLUSTERS:
        return Verdict(UNDECIDED, f"{figures}, but that is of {clusters} clusters of queries, too few to tell.")
    if cost.low > 0 and (cost.mean >= READS_COST or cosine <= READS_COSINE):
        return Verdict(READS, f"{figures}.")
    if cosine >= IGNORES_COSINE and cost.high < IGNORES_COST:
        return Verdict(IGNORES, f"{figures}.")
    return Verdict(UNDECIDED, f"{figures}: {_doubt(cost, cosine)}.")


def _doubt(cost: Interval, cosine: float) -> str:
    if cost.high < 0:
        return "the rationales of other queries serve it better than its own"
    if cost.high >= READS_COST > cost.mean and cost.low <= 0:
        return "the interval is wide, take more queries"
    if cost.low > 0:
        return "there is an effect, but a small one"
    return "the vectors move, but what is found hardly changes, so take tasks that need a thought"


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
        values = np.stack([column[rows] for column in columns.values()], axis=1)  # (n, K)
        clusters, names = trials.cluster[rows].tolist(), trials.task[rows].tolist()
        mean, draws = bootstrap_means(values, clusters, names, num_samples=num_samples, seed=seed)
        intervals = [interval_of(float(one), drawn) for one, drawn in zip(mean, draws.T, strict=True)]
        return dict(zip(columns, intervals, strict=True))

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
    verdict = judge(cost, cosine, clusters)
    return {
        "n": int(chosen.sum()),
        "score": own["score"]._asdict(),
        "mean_reasoning_tokens": own["tokens"].mean,
        "interventions": interventions,
        "cosine_between_queries": means(paired, others=trials.others)["others"].mean if paired.any() else None,
        "verdict": verdict.name,
        "reason": verdict.reason,
    }
