"""Summarise the shortcut test, decide whether a model reads its rationales, and show the figures as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.report.text import MISSING, Head, as_points, lined_table, points_between
from mmemb_r1.evaluation.run_folder import Columns, read_table
from mmemb_r1.evaluation.statistics import NUM_SAMPLES, Interval, clustered_means
from mmemb_r1.evaluation.tasks import ALL

if TYPE_CHECKING:
    from rich.table import Table


READS, IGNORES, UNDECIDED = "reads", "ignores", "undecided"
READS_COST, READS_COSINE = 0.10, 0.80  # from this cost on, or up to this cosine
LEAST_COST = 0.02  # below it nothing is read, whatever the cosine
IGNORES_COST, IGNORES_COSINE = 0.05, 0.95  # within this of zero, either way, and from this cosine on
IGNORES_WAY = 0.5  # at most so much of the way from one query's vector to another's
NO_WAY = 1e-4  # 1 - cosine of two queries' vectors that can't be told apart
LEAST_CLUSTERS = 20  # of swapped queries: draws of fewer vary too little


class Verdict(NamedTuple):
    """Says whether a model `"reads"` or `"ignores"` its rationales, or is `"undecided"`, and why, with the figures."""

    name: str
    reason: str


def judge(cost: Interval | None, cosine: float | None, between: float | None, clusters: int) -> Verdict:
    """
    Decide whether a model reads its rationales [ours].

    It reads them if swapping them lowers the score beyond chance and by more than next to nothing, and either the cost
    or the way that the vectors go is large. It ignores them if the vectors stay where they are, also in comparison
    with those of other queries, and so does the score. Otherwise there is no verdict: where rationales make no
    difference to what is found, scores can't show whether they are read.

    Args:
        cost: of the swap, own score minus swapped, as a share of 1, with its interval; `None` if nothing was swapped.
        cosine: of the vectors after the own rationale and after the swapped one, mean.
        between: of the vectors of two queries, each after its own rationale, mean.
        clusters: of the queries that were swapped.

    >>> judge(Interval(0.31, 0.27, 0.35), 0.55, 0.3, clusters=200).name
    'reads'
    >>> judge(Interval(0.002, -0.004, 0.008), 0.97, 0.3, clusters=200).name
    'ignores'
    >>> judge(Interval(0.002, -0.004, 0.008), 0.55, 0.3, clusters=200).name
    'undecided'
    >>> judge(Interval(-0.2, -0.3, -0.1), 0.96, 0.3, clusters=200).name
    'undecided'
    """
    if cost is None or cosine is None or between is None:
        return Verdict(UNDECIDED, "no query has another's rationale to be swapped with: they are all the same.")
    figures = (
        f"swapping rationales costs {100 * cost.mean:.1f} points [{100 * cost.low:.1f}, {100 * cost.high:.1f}], and "
        f"the vectors' cosine is {cosine:.2f}"
    )
    if clusters < LEAST_CLUSTERS:
        return Verdict(UNDECIDED, f"{figures}, but that is of {clusters} clusters of queries, too few to tell.")
    if cost.low > 0 and cost.mean >= LEAST_COST and (cost.mean >= READS_COST or cosine <= READS_COSINE):
        return Verdict(READS, f"{figures}.")
    small = -IGNORES_COST < cost.low and cost.high < IGNORES_COST
    if cosine >= IGNORES_COSINE and small and not _as_far(cosine, between):
        return Verdict(IGNORES, f"{figures}.")
    return Verdict(UNDECIDED, f"{figures}: {_doubt(cost, cosine, between)}.")


def _as_far(cosine: float, between: float) -> bool:
    """Say whether a vector goes as far as other queries lie from it, or most of the way."""
    return 1 - between < NO_WAY or 1 - cosine > IGNORES_WAY * (1 - between)


def _doubt(cost: Interval, cosine: float, between: float) -> str:
    if cost.high < 0:
        return "the rationales of other queries serve it better than its own"
    if cost.low > 0:
        return "there is an effect, but a small one"
    if cost.high >= READS_COST:
        return "the interval is wide, take more queries"
    if cosine >= IGNORES_COSINE and _as_far(cosine, between):
        return f"the vectors of different queries lie as close together ({between:.2f}), so that this says little"
    if cosine >= IGNORES_COSINE:
        return "the vectors hardly move, but the interval is wide, take more queries"
    return "the vectors move, but what is found hardly changes, so take tasks that need a rationale"


Floats = npt.NDArray[np.float64]
# What stands in the place of a query's own rationale: nothing, the direct vector; an empty one; another query's; its
# own words in another order.
INTERVENTIONS = ("drop", "empty", "swap", "shuffle")


@dataclass(frozen=True)
class ShortcutOutcomes:
    """
    Holds what N queries got with their own rationales and with others.

    Args:
        task, cluster: `(N,)` names, and what the queries are about.
        tokens, own: `(N,)` tokens of their own rationales, and scores with these.
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


def summarise_outcomes(
    outcomes: ShortcutOutcomes, tasks: Sequence[str] | None = None, *, num_samples: int = NUM_SAMPLES, seed: int = 0
) -> dict[str, Any]:
    """
    Average with 95 % intervals from draws of whole clusters, every task having the same weight.

    An intervention's figures are those of the queries that it changes something for.

    Args:
        outcomes: N queries.
        tasks: whose queries are averaged. Default: of all.
        num_samples, seed: of the draws. Default: 2000, 0.

    Returns:
        What JSON can hold: `n`; `score` with their own rationales and `mean_reasoning_tokens`; `interventions`, per
        name `n`, `clusters`, `score`, `cost` (own score minus that) and `cosine`, or `None` where none changes
        anything; `cosine_between_queries`; `verdict` and `reason`. Numbers with an interval are `{"mean", "low",
        "high"}`.

    Raises:
        ValueError: if there is no query of these tasks.
    """
    chosen = np.ones(len(outcomes.task), dtype=bool) if tasks is None else np.isin(outcomes.task, list(tasks))
    if not chosen.any():
        raise ValueError(f"there are no queries of the tasks {list(tasks or [])}")

    def means(rows: npt.NDArray[np.bool_], **columns: npt.NDArray[Any]) -> dict[str, Interval]:
        some = {name: column[rows] for name, column in columns.items()}
        clusters, names = outcomes.cluster[rows].tolist(), outcomes.task[rows].tolist()
        return clustered_means(some, clusters, names, num_samples=num_samples, seed=seed)

    interventions: dict[str, dict[str, Any] | None] = {}
    cost, cosine, clusters = None, None, 0
    for name, scores in outcomes.scores.items():
        rows = chosen & ~np.isnan(scores)
        if not rows.any():
            interventions[name] = None
            continue
        numbers = means(rows, score=scores, cost=outcomes.own - scores, cosine=outcomes.cosines[name])
        counts = {"n": int(rows.sum()), "clusters": len(set(outcomes.cluster[rows].tolist()))}
        interventions[name] = {**counts, **{key: value._asdict() for key, value in numbers.items()}}
        if name == "swap":
            cost, cosine, clusters = numbers["cost"], numbers["cosine"].mean, counts["clusters"]
    own = means(chosen, score=outcomes.own, tokens=outcomes.tokens)
    paired = chosen & ~np.isnan(outcomes.others)
    between = means(paired, others=outcomes.others)["others"].mean if paired.any() else None
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


TEXTS = ("query_id", "cluster", "rationale", "donor")
NUMBERS = (
    "score",
    "num_reasoning_tokens",
    "cosine_between_queries",
    *(f"{kind}_{name}" for kind in ("score", "cosine") for name in INTERVENTIONS),
)
KINDS = {**dict.fromkeys(TEXTS, "string"), **dict.fromkeys(NUMBERS, "float64")}  # their types in the words of Arrow
HINT = "remove it and run the test again: only this task is measured again"


def read_outcomes(path: Path) -> Columns:
    """Read the columns of `KINDS` that were written; refuse a file that is damaged or holds something else."""
    table = read_table(path, KINDS, HINT)
    return {name: table[name].to_numpy() for name in KINDS}


def join_outcomes(measured: Mapping[str, Columns]) -> ShortcutOutcomes:
    """Join the columns of all tasks, from task -> its columns."""

    def joined(name: str) -> npt.NDArray[Any]:
        return np.concatenate([columns[name] for columns in measured.values()])

    return ShortcutOutcomes(
        task=np.concatenate([np.full(len(columns["score"]), name, object) for name, columns in measured.items()]),
        cluster=joined("cluster"),
        tokens=joined("num_reasoning_tokens"),
        own=joined("score"),
        others=joined("cosine_between_queries"),
        scores={name: joined(f"score_{name}") for name in INTERVENTIONS},
        cosines={name: joined(f"cosine_{name}") for name in INTERVENTIONS},
    )


def shortcut_table(results: Mapping[str, Any], title: str = "What other rationales cost") -> Table:
    """
    Lay out what `run_diagnosis` returned as a `rich` table: per task, group and over all the score with the own
    rationales, what each intervention costs in points, the cosine of the vectors after it and after the own rationale,
    that of the vectors of two queries, each after its own rationale (`queries`), and the verdict.
    """
    names = ["n", "score", *INTERVENTIONS, *(f"cos {name}" for name in INTERVENTIONS), "queries"]
    names.insert(names.index("swap") + 1, "95 %")
    heads = [Head(name, main=name in ("swap", "cos swap")) for name in names]
    return lined_table(title, [*heads, Head("verdict", number=False)], dict(results), _cells)


def _cells(entry: Mapping[str, Any]) -> list[str]:
    found = entry["interventions"]
    cells = [str(entry["n"]), f"{entry['score']['mean']:.3f}"]
    for name in INTERVENTIONS:
        cells.append(MISSING if found[name] is None else as_points(found[name]["cost"]["mean"]))
        if name == "swap":
            cells.append(MISSING if found[name] is None else points_between(found[name]["cost"]))
    cells += [MISSING if found[name] is None else f"{found[name]['cosine']['mean']:.2f}" for name in INTERVENTIONS]
    between = entry["cosine_between_queries"]
    return [*cells, MISSING if between is None else f"{between:.2f}", entry["verdict"]]


def verdict_line(results: Mapping[str, Any], model: str) -> str:
    """Write what the test says of a model, in one line."""
    found = results["summary"][ALL]
    statement = "undecided whether it reads" if found["verdict"] == UNDECIDED else found["verdict"]
    return f"{model}: {statement} its rationales: {found['reason']}"
