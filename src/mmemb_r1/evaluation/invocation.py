"""Measure what the gate's choice is worth: pure functions of each query's direct and reasoned scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.statistics import Interval, bootstrap_means, cluster_draws, interval_of, number_names

Floats = npt.NDArray[np.float64]
_NUMBERS = ("never", "always", "tokens", "gate_prob", "seconds_never", "seconds_always")


@dataclass(frozen=True)
class Answers:
    """
    Holds both answers to each query of one or several tasks, and what the gate said.

    Args:
        task, cluster: `(N,)` names of the tasks, and of what the queries are about.
        never, always: `(N,)` scores of the direct and the reasoned vectors, say 1 where the right one came first.
        tokens: `(N,)` of each query's rationale.
        gate_prob: `(N,)` probabilities that the gate thinks. `None` for models without a gate.
        seconds_never, seconds_always: `(N,)` that a query of its task takes in each mode. `None` if not measured.
        target_probability_never, target_probability_always: `(N,)` of the right candidate, with either vector; NaN
            where it was not measured. `None` if it never was.

    Raises:
        ValueError: if there are no queries, lengths differ, or a number that has to be there is not finite.
    """

    task: npt.NDArray[Any]
    cluster: npt.NDArray[Any]
    never: npt.NDArray[Any]
    always: npt.NDArray[Any]
    tokens: npt.NDArray[Any]
    gate_prob: npt.NDArray[Any] | None = None
    seconds_never: npt.NDArray[Any] | None = None
    seconds_always: npt.NDArray[Any] | None = None
    target_probability_never: npt.NDArray[Any] | None = None
    target_probability_always: npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        if not len(self.task):
            raise ValueError("there are no queries; give at least one")
        for name, values in self._columns().items():
            if values.shape != (len(self.task),):
                raise ValueError(f"{name} has the shape {values.shape}; expected one per query, ({len(self.task)},)")
            if name in _NUMBERS and not np.isfinite(values.astype(np.float64)).all():
                row = int(np.argmin(np.isfinite(values.astype(np.float64))))
                raise ValueError(f"{name} of query {row} is {values[row]}; it has to be finite")

    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def where(self, mask: npt.NDArray[np.bool_]) -> Answers:
        """Keep the queries for which `mask` `(N,)` is true."""
        return Answers(**{name: values[mask] for name, values in self._columns().items()})

    def thinks(self, threshold: float) -> npt.NDArray[np.bool_]:
        """Decide for which queries `(N,)` the gate thinks at this threshold."""
        return self.gate() >= threshold

    def threshold(self, share: float) -> float:
        """Find the highest threshold at which at least this share of all queries thinks; infinite for none."""
        if not 0 <= share <= 1:
            raise ValueError(f"share={share}; allowed: 0 to 1")
        number = round(share * len(self.task))
        return float(np.sort(self.gate())[-number]) if number else np.inf

    def gate(self) -> npt.NDArray[Any]:
        """Return `(N,)` probabilities that the gate thinks, or raise a `ValueError` if there is no gate."""
        if self.gate_prob is None:
            raise ValueError("these answers have no gate_prob: the model has no gate, or none was recorded")
        return self.gate_prob

    def gap(self) -> Floats:
        """Compute the utility gap `(N,)`: target probability after the rationale minus that before, or NaN."""
        if self.target_probability_never is None or self.target_probability_always is None:
            return np.full(len(self.task), np.nan)
        return self.target_probability_always.astype(np.float64) - self.target_probability_never.astype(np.float64)


LEAST_GAP = 0.1  # of the utility gap's size, for the gate to be judged by its sign


class GateQuality(NamedTuple):
    """
    Judges the gate against the sign of the true utility gap.

    Attributes:
        auc: area under the ROC curve over the queries that count. `None` if these are all of one sign.
        share: of the queries whose gap is known, those that count.
        queries: how many count.
    """

    auc: Interval | None
    share: float
    queries: int


def gate_quality(answers: Answers, least_gap: float = LEAST_GAP, *, seed: int = 0) -> GateQuality | None:
    """Judge how well the gate tells whether thinking pays, where the gap counts; `None` if no gap is known."""
    gate, gap = answers.gate(), answers.gap()
    known = ~np.isnan(gap)
    if not known.any():
        return None
    counted = known & (np.abs(np.where(known, gap, 0)) >= least_gap)
    scores, pays = gate[counted].astype(np.float64), gap[counted] > 0
    share, queries = float(counted.sum() / known.sum()), int(counted.sum())
    if not pays.any() or pays.all():
        return GateQuality(None, share, queries)
    cluster = number_names(answers.cluster.tolist())
    draws = [
        auc(scores, pays, drawn[:, cluster[counted]])
        for drawn in cluster_draws(int(cluster.max()) + 1, seed=seed, columns=queries)
    ]
    return GateQuality(interval_of(float(auc(scores, pays)[0]), np.concatenate(draws)), share, queries)


def auc(scores: npt.ArrayLike, positive: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Floats:
    """
    Compute the area under the ROC curve: how often a positive scores above a negative, ties counting half.

    Takes `(N,)` scores and signs, and `(D, N)` how often each entry counts in each of D cases (default: once, in one
    case). Returns `(D,)`, NaN where there is no positive or no negative.

    >>> auc([0.9, 0.5, 0.5, 0.1], [True, True, False, False]).tolist()
    [0.875]
    """
    values, signs = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=np.bool_)
    times = np.ones((1, len(values))) if weights is None else np.asarray(weights, dtype=np.float64)
    if not values.shape == signs.shape == times.shape[1:] or not len(values):
        raise ValueError(
            f"got scores {values.shape}, signs {signs.shape} and weights {times.shape}; expected (N,), (N,) and (D, N)"
        )
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf) > 0)  # (L,) where a new level of scores begins
    # (D, L) each
    up, down = (np.add.reduceat(times[:, order] * part[order], starts, axis=1) for part in (signs, ~signs))
    below = np.cumsum(down, axis=1) - down / 2
    pairs = up.sum(axis=1) * down.sum(axis=1)
    return np.divide((up * below).sum(axis=1), pairs, out=np.full(len(times), np.nan), where=pairs > 0)


def drawn_means(columns: dict[str, npt.NDArray[Any]], answers: Answers, seed: int) -> dict[str, Floats]:
    """Average each column over tasks, then in every draw: `(1 + S,)` each."""
    values = np.stack([column.astype(np.float64) for column in columns.values()], axis=1)  # (N, K)
    mean, draws = bootstrap_means(values, answers.cluster.tolist(), answers.task.tolist(), seed=seed)
    return dict(zip(columns, np.concatenate([mean[None], draws]).T, strict=True))


def _interval(values: Floats) -> Interval:
    """Take the mean that `(1 + S,)` begins with, and the interval of the draws behind it."""
    return interval_of(float(values[0]), values[1:])


def coin(means: dict[str, Floats], ratio: float) -> Floats:
    """Compute expected scores `(1 + S,)` if every query had a rationale with the probability `ratio`."""
    return ratio * means["always"] + (1 - ratio) * means["never"]


def choice_scores(answers: Answers, thinks: npt.NDArray[np.bool_]) -> Floats:
    """Take the scores `(N,)` if the queries with `thinks` `(N,)` think and the others do not."""
    return np.where(thinks, answers.always, answers.never).astype(np.float64)


def oracle(answers: Answers) -> Floats:
    """Take the scores `(N,)` of a choice that is always right: the better of both."""
    return np.maximum(answers.always, answers.never).astype(np.float64)


class Choice(NamedTuple):
    """
    Says what a choice of the queries that think is worth: means over tasks, with intervals.

    Attributes:
        never, always, auto: scores of the fixed modes and of the choice.
        oracle: score if every query got the better of its two vectors.
        random: expected score if every query had a rationale with the probability `invocation`.
        invocation: share of the queries that think.
        tokens, tokens_always: of a query's rationale, 0 where it does not think; and if all think.
        better_fixed: `"never"` or `"always"`, whichever scores higher.
        gain, headroom: auto and oracle, minus the better fixed mode.
        captured: gain as a share of the head-room, below 0 if the choice is worse. `None` if there is no head-room.
        over_random: auto minus random.
        queries: how many.
    """

    never: Interval
    always: Interval
    auto: Interval
    oracle: Interval
    random: Interval
    invocation: Interval
    tokens: Interval
    tokens_always: Interval
    better_fixed: str
    gain: Interval
    headroom: Interval
    captured: Interval | None
    over_random: Interval
    queries: int


def judge_choice(answers: Answers, thinks: npt.NDArray[np.bool_], *, seed: int = 0) -> Choice:
    """
    Compare a choice with the fixed modes, the best choice and a coin, query by query.

    In every draw the share at which the coin thinks, and which fixed mode is the better one, are those of all queries.
    `thinks` is `(N,)`, say `answers.thinks(0.5)`; `seed` is that of the bootstrap.

    >>> two = np.array([0.0, 1.0])
    >>> answers = Answers(np.array(["a", "a"]), np.array(["x", "y"]), never=two, always=1 - two, tokens=two)
    >>> choice = judge_choice(answers, np.array([True, False]))
    >>> choice.auto.mean, choice.random.mean, choice.captured.mean
    (1.0, 0.5, 1.0)
    """
    columns = {
        "never": answers.never,
        "always": answers.always,
        "auto": choice_scores(answers, thinks),
        "oracle": oracle(answers),
        "invocation": thinks,
        "tokens": np.where(thinks, answers.tokens, 0),
        "tokens_always": answers.tokens,
    }
    means = drawn_means(columns, answers, seed)
    ratio = means["invocation"][0]
    means["random"] = coin(means, ratio)
    fixed = max(("never", "always"), key=lambda mode: means[mode][0])
    gain, headroom = means["auto"] - means[fixed], means["oracle"] - means[fixed]
    with np.errstate(invalid="ignore", divide="ignore"):
        captured = np.where(headroom > 0, gain / headroom, np.nan)
    return Choice(
        **{name: _interval(values) for name, values in means.items()},
        better_fixed=fixed,
        gain=_interval(gain),
        headroom=_interval(headroom),
        captured=_interval(captured) if headroom[0] > 0 else None,
        over_random=_interval(means["auto"] - means["random"]),
        queries=len(thinks),
    )


LITTLE, MUCH = 0.01, 0.2  # score of a task that thinking gains: at most, and at least


def invocation_by_gain(answers: Answers, thinks: npt.NDArray[np.bool_]) -> dict[str, float | None]:
    """
    Compute how often queries think in tasks where that gains or loses at most 0.01, `"little"`, and in those where it
    gains at least 0.2, `"much"`: means over these tasks, `None` where there are none. `thinks` is `(N,)`.

    >>> score = np.array([0.0, 1.0])
    >>> answers = Answers(np.array(["a", "b"]), np.array(["x", "y"]), never=score * 0, always=score, tokens=score)
    >>> invocation_by_gain(answers, np.array([False, True]))
    {'little': 0.0, 'much': 1.0}
    """
    gains, rates = [], []
    for task in np.unique(answers.task):
        of = answers.task == task
        gains.append(float(answers.always[of].mean() - answers.never[of].mean()))
        rates.append(float(thinks[of].mean()))
    kinds = {"little": np.abs(gains) <= LITTLE, "much": np.array(gains) >= MUCH}
    return {name: float(np.array(rates)[kind].mean()) if kind.any() else None for name, kind in kinds.items()}


def least_tokens(answers: Answers, slack: float = 0.003) -> float | None:
    """
    Find the least share of always' tokens with which the gate reaches always' score, less `slack`, at any threshold;
    `None` if it does at none. Scores and tokens are means over tasks. (Chosen on these answers: optimistic.)
    """
    gate = answers.gate().astype(np.float64)
    _, task, sizes = np.unique(answers.task, return_inverse=True, return_counts=True)
    weights = 1 / (sizes[task] * len(sizes))  # (N,)
    order = np.argsort(-gate, kind="stable")
    gained = np.cumsum((weights * (answers.always.astype(np.float64) - answers.never))[order])
    spent = np.cumsum((weights * answers.tokens)[order])
    ends = np.append(np.diff(gate[order]) < 0, True)  # equal probabilities think together
    wanted = gained[-1] - slack
    if wanted <= 0:
        return 0.0
    reached = np.flatnonzero(ends & (gained >= wanted - 1e-12))
    return float(spent[reached[0]] / spent[-1]) if len(reached) and spent[-1] else None


SHARES = tuple(np.linspace(0, 1, 21).tolist())  # of the queries that think, at the points of a curve


class CurvePoint(NamedTuple):
    """
    Says what the gate gets at one threshold.

    Attributes:
        threshold: queries whose probability is at least this think; infinite if none does.
        share, invocation: of all queries those that think, and the same as a mean over tasks.
        score, tokens: means over tasks; tokens are 0 where a query does not think.
        random: expected score if every query had a rationale with the probability `invocation`.
        over_random: score minus random.
        seconds: expected per query, mean over tasks: a query takes what its task takes in the mode that it is
            embedded in. `None` if times are not known.
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
    Compute scores and costs as the gate's threshold sweeps, a point for each share of queries that are to think.

    Raises:
        ValueError: if the model has no gate, or there are no shares.
    """
    if not len(shares):
        raise ValueError("there are no shares; give at least one")
    thresholds = [answers.threshold(share) for share in shares]
    decided = [answers.thinks(threshold) for threshold in thresholds]
    direct, reasoned = answers.seconds_never, answers.seconds_always
    columns = {"never": answers.never, "always": answers.always}
    for place, thinks in enumerate(decided):
        columns[f"score-{place}"] = choice_scores(answers, thinks)
        columns[f"invocation-{place}"] = thinks
        columns[f"tokens-{place}"] = np.where(thinks, answers.tokens, 0)
        if direct is not None and reasoned is not None:
            columns[f"seconds-{place}"] = np.where(thinks, reasoned, direct)
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
                score=_interval(score),
                random=_interval(random),
                over_random=_interval(score - random),
                tokens=float(means[f"tokens-{place}"][0]),
                seconds=float(means[f"seconds-{place}"][0]) if f"seconds-{place}" in means else None,
            )
        )
    return points


def efficient(costs: npt.ArrayLike, scores: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """
    Find the points `(N,)` on the frontier of cost and score: no other one scores higher for as little or less.

    >>> efficient([1.0, 2.0, 3.0, 2.0], [0.5, 0.7, 0.6, 0.4]).tolist()
    [True, True, False, False]
    """
    cost, score = np.asarray(costs, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if cost.shape != score.shape or cost.ndim != 1:
        raise ValueError(f"got costs {cost.shape} and scores {score.shape}; expected (N,) both")
    no_worse = (cost <= cost[:, None]) & (score >= score[:, None])  # (N, N): column beats or equals row
    better = (cost < cost[:, None]) | (score > score[:, None])
    return np.logical_not((no_worse & better).any(axis=1))
