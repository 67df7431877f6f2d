"""
Does a model read its rationales? The verdict, from what other rationales in their place cost.

Contrastive training can teach a model to write rationales and pass them by: the shortcut. Then its vectors stay where
they are whatever stands between `<think>` and `</think>`. The verdict goes by the rationale of another query (`swap`),
which has the form of the own one and not its content. Where the thresholds come from is in docs/diagnose.md.
"""

from __future__ import annotations

from typing import NamedTuple

from mmemb_r1.evaluation.statistics import Interval

READS, IGNORES, UNDECIDED = "reads", "ignores", "undecided"
READS_COST, READS_COSINE = 0.10, 0.80  # from this cost on, or up to this cosine
LEAST_COST = 0.02  # below it nothing is read, whatever the cosine
IGNORES_COST, IGNORES_COSINE = 0.05, 0.95  # within this of zero, either way, and from this cosine on
IGNORES_WAY = 0.5  # at most so much of the way from one query's vector to another's
NO_WAY = 1e-4  # 1 - cosine of two queries' vectors that can't be told apart
LEAST_CLUSTERS = 20  # of swapped queries: draws of fewer vary too little


class Verdict(NamedTuple):
    """
    Attributes:
        name: `"reads"`, `"ignores"` or `"undecided"`.
        reason: one sentence with the figures.
    """

    name: str
    reason: str


def judge(cost: Interval | None, cosine: float | None, between: float | None, clusters: int) -> Verdict:
    """
    Whether a model reads its rationales [ours].

    It reads them if swapping them lowers the score beyond chance and by more than next to nothing, and either the cost
    or the way that the vectors go is large. It ignores them if the vectors stay where they are, also in comparison
    with those of other queries, and so does the score: one that falls or rises by more than a little is not that of a
    model which passes its rationales by. Otherwise there is no verdict: where thoughts make no difference to what is
    found, scores can't show whether they are read.

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
    """Whether a vector goes as far as other queries lie from it, or most of the way."""
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
    return "the vectors move, but what is found hardly changes, so take tasks that need a thought"
