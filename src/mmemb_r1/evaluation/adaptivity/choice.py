"""What a choice of the queries that think is worth, next to thinking never, always, at random, or best."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.adaptivity.answers import Answers, Floats
from mmemb_r1.evaluation.adaptivity.means import coin, drawn_means, interval
from mmemb_r1.evaluation.statistics import Interval


def chosen(answers: Answers, thinks: npt.NDArray[np.bool_]) -> Floats:
    """`(N,)` scores if the queries with `thinks` `(N,)` think and the others do not."""
    return np.where(thinks, answers.always, answers.never).astype(np.float64)


def oracle(answers: Answers) -> Floats:
    """`(N,)` scores of a choice that is always right: the better of both."""
    return np.maximum(answers.always, answers.never).astype(np.float64)


class Choice(NamedTuple):
    """
    What a choice of the queries that think is worth: means over tasks, with intervals.

    Attributes:
        never, always: scores of the fixed modes.
        auto: score of the choice.
        oracle: score if every query got the better of its two vectors.
        random: expected score if every query thought with the probability `invocation`.
        invocation: share of the queries that think.
        tokens: of a query's thought, 0 where it does not think.
        tokens_always: if all think.
        better_fixed: `"never"` or `"always"`, whichever scores higher.
        gain: auto minus the better fixed mode.
        headroom: oracle minus the better fixed mode.
        captured: gain as a share of the head-room; below 0 if the choice is worse than the fixed mode. `None` if there
            is no head-room.
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

    Args:
        answers: N queries.
        thinks: `(N,)`, say `answers.thinks(0.5)`.
        seed: of the bootstrap.

    >>> two = np.array([0.0, 1.0])
    >>> answers = Answers(np.array(["a", "a"]), np.array(["x", "y"]), never=two, always=1 - two, tokens=two)
    >>> choice = judge_choice(answers, np.array([True, False]))
    >>> choice.auto.mean, choice.random.mean, choice.captured.mean
    (1.0, 0.5, 1.0)
    """
    columns = {
        "never": answers.never,
        "always": answers.always,
        "auto": chosen(answers, thinks),
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
        **{name: interval(values) for name, values in means.items()},
        better_fixed=fixed,
        gain=interval(gain),
        headroom=interval(headroom),
        captured=interval(captured) if headroom[0] > 0 else None,
        over_random=interval(means["auto"] - means["random"]),
        queries=len(thinks),
    )


def random_gate(answers: Answers, ratio: float, *, seed: int = 0) -> Interval:
    """
    Expected score if every query thought with the probability `ratio`: `ratio * always + (1 - ratio) * never`.

    Raises:
        ValueError: if the ratio is not one.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio={ratio}; allowed: 0 to 1")
    return interval(coin(drawn_means({"never": answers.never, "always": answers.always}, answers, seed), ratio))
