"""Scores and costs of the gate at every threshold, and which of several points are efficient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.adaptivity.answers import Answers
from mmemb_r1.evaluation.adaptivity.choice import chosen
from mmemb_r1.evaluation.adaptivity.means import coin, drawn_means, interval
from mmemb_r1.evaluation.statistics import Interval

SHARES = tuple(np.linspace(0, 1, 21).tolist())  # of the queries that think, at the points of a curve


class CurvePoint(NamedTuple):
    """
    What the gate gets at one threshold.

    Attributes:
        threshold: queries whose probability is at least this think; infinite if none does.
        share: of all queries, those that think.
        invocation: the same as a mean over tasks.
        score: mean over tasks.
        random: expected score if every query thought with the probability `invocation`.
        over_random: score minus random.
        tokens: of a query's thought, 0 where it does not think; mean over tasks.
        seconds: expected per query, mean over tasks: those that think take what their task takes with `always`, the
            others what it takes with `never`. `None` if times are not known.
    """

    threshold: float
    share: float
    invocation: float
    score: Interval
    random: Interval
    over_random: Interval
    tokens: float
    seconds: float | None


def invocation_curve(answers: Answers, shares: Sequence[float] = SHARES, *, seed: int = 0) -> list[CurvePoint]:
    """
    Scores and costs as the gate's threshold sweeps.

    Args:
        answers: N queries, with `gate_prob`.
        shares: of the queries that are to think, a point each. Default: 0, 0.05, ... 1.
        seed: of the bootstrap.

    Raises:
        ValueError: if the model has no gate, or there are no shares.
    """
    if not len(shares):
        raise ValueError("there are no shares; give at least one")
    thresholds = [answers.threshold(share) for share in shares]
    decided = [answers.thinks(threshold) for threshold in thresholds]
    direct, thought = answers.seconds_never, answers.seconds_always
    timed = direct is not None and thought is not None
    columns = {"never": answers.never, "always": answers.always}
    for place, thinks in enumerate(decided):
        columns[f"score-{place}"] = chosen(answers, thinks)
        columns[f"invocation-{place}"] = thinks
        columns[f"tokens-{place}"] = np.where(thinks, answers.tokens, 0)
        if direct is not None and thought is not None:
            columns[f"seconds-{place}"] = np.where(thinks, thought, direct)
    means = drawn_means(columns, answers, seed)
    points = []
    for place, (threshold, thinks) in enumerate(zip(thresholds, decided, strict=True)):
        score, invocation = means[f"score-{place}"], float(means[f"invocation-{place}"][0])
        random = coin(means, invocation)
        points.append(
            CurvePoint(
                threshold=threshold,
                share=float(thinks.mean()),
                invocation=invocation,
                score=interval(score),
                random=interval(random),
                over_random=interval(score - random),
                tokens=float(means[f"tokens-{place}"][0]),
                seconds=float(means[f"seconds-{place}"][0]) if timed else None,
            )
        )
    return points


def efficient(costs: npt.ArrayLike, scores: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """
    Which points lie on the frontier of cost and score: no other one scores higher for as little or less.

    Args:
        costs: `(N,)`, say seconds per query.
        scores: `(N,)`.

    Returns:
        `(N,)`. Of points alike in both, all or none.

    >>> efficient([1.0, 2.0, 3.0, 2.0], [0.5, 0.7, 0.6, 0.4]).tolist()
    [True, True, False, False]
    """
    cost, score = np.asarray(costs, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if cost.shape != score.shape or cost.ndim != 1:
        raise ValueError(f"got costs {cost.shape} and scores {score.shape}; expected (N,) both")
    no_worse = (cost <= cost[:, None]) & (score >= score[:, None])  # (N, N): column beats or equals row
    better = (cost < cost[:, None]) | (score > score[:, None])
    return np.logical_not((no_worse & better).any(axis=1))
