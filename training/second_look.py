"""Fit the second look: how much of a reasoned vector to keep, by what is known of its rationale."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmemb_r1.evaluation.scoring import SCORES_AT_ONCE
from mmemb_r1.evaluation.settings import LOOKING
from mmemb_r1.modeling.heads_mmemb_r1 import finished
from mmemb_r1.modeling.options_mmemb_r1 import SECOND_LOOK
from mmemb_r1.modeling.second_look_mmemb_r1 import (
    FEATURES,
    mixed,
    second_look_features,
    second_look_weight,
)
from mmemb_r1.training.gate_decisions import Competition, Decisions, outcomes

logger = logging.getLogger(__name__)
WEIGHT_DECAY = 1e-3  # of the squared weights of standardised features, not of the bias
LEAST_DEVIATION = 1e-4  # of a feature that is read
FOLDS = 5  # where no queries are held out
Weights = dict[str, float]


@dataclass(frozen=True)
class Mixtures:
    """
    Hold what the vectors of N queries that thought are mixed of.

    Attributes:
        config: the [`MMEmbR1Config`].
        features: `(N, 5)`, see [`second_look_features`].
        direct, reasoned: `(N, D)` vectors before any rationale, and after the last.
        decisions: where they come from, with what their targets compete with.
    """

    config: Any
    features: Tensor
    direct: Tensor
    reasoned: Tensor
    decisions: Decisions

    @classmethod
    def of(cls, config: Any, decisions: Decisions, gate_prob: Tensor, rounds: npt.NDArray[np.int64]) -> Mixtures:
        """Collect them of queries that thought so many `rounds` `(N,)`, at least one, at gate probabilities `(N,)`."""
        if decisions.vectors is None or decisions.written is None:
            raise ValueError("these decisions were measured without what a second look reads; measure them with it.")
        rows = np.arange(len(rounds))
        direct, reasoned = decisions.vectors[:, 0], decisions.vectors[rows, rounds]
        features = second_look_features(decisions.written[rows, rounds - 1], direct, reasoned, gate_prob)
        return cls(config, features, direct, reasoned, decisions)

    def some(self, rows: npt.NDArray[np.int64]) -> Mixtures:
        """Those of some of the queries, in ascending order."""
        features, direct, reasoned = self.features[rows], self.direct[rows], self.reasoned[rows]
        return Mixtures(self.config, features, direct, reasoned, self.decisions.of(rows))

    def weight(self, weights: Weights) -> Tensor:
        """Compute how much of each reasoned vector is kept, `(N,)`."""
        return second_look_weight(weights, self.features)

    def vectors(self, weight: Tensor) -> Tensor:
        """Mix `(N, D)` vectors as the model does."""
        return finished(self.config, mixed(self.direct, self.reasoned, weight))

    def outcomes(self, weight: Tensor) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Compute probability and rank `(N,)` of each target, for the mixtures by a weight `(N,)`."""
        return outcomes_of(self.decisions, self.vectors(weight))

    def losses(self, weight: Tensor) -> Iterator[Tensor]:
        """Yield parts of the mean probability of the targets, negated: together they are too large for one graph."""
        for competition, candidates in in_pieces(self.decisions):
            rows = torch.from_numpy(competition.rows)
            vectors = finished(self.config, mixed(self.direct[rows], self.reasoned[rows], weight[rows]))
            yield -outcomes(competition, vectors, candidates, self.decisions.temperature)[0].sum() / len(weight)


def in_pieces(decisions: Decisions) -> Iterator[tuple[Competition, Tensor]]:
    """Cut the competitions of decisions into those of fewer queries, each with the vectors of its candidates."""
    for competition, candidates in zip(decisions.competitions, decisions.candidates, strict=True):
        size = max(1, SCORES_AT_ONCE // len(candidates))
        for start in range(0, len(competition.rows), size):
            some = slice(start, start + size)
            pools, right = competition.pools and competition.pools[some], competition.right[some]
            yield replace(competition, rows=competition.rows[some], right=right, pools=pools), candidates


def outcomes_of(decisions: Decisions, vectors: Tensor) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """Compute probability and rank `(N,)` of the target of each query, for other vectors `(N, D)` of the queries."""
    probabilities, ranks = torch.zeros(len(vectors)), np.zeros(len(vectors), dtype=np.int64)
    for competition, candidates in zip(decisions.competitions, decisions.candidates, strict=True):
        rows = competition.rows
        found = outcomes(competition, vectors[torch.from_numpy(rows)], candidates, decisions.temperature)
        probabilities[rows], ranks[rows] = found
    return probabilities, ranks


def fit_second_look(mixtures: Mixtures, weight_decay: float = WEIGHT_DECAY) -> Weights:
    """
    Fit the weights of a second look, such that the targets of the mixed vectors are as probable as can be on average.

    Args:
        mixtures: to fit to.
        weight_decay: of the squared weights of features that have mean 0 and deviation 1.

    Returns:
        The config's `second_look`: weights of the features as they are. Source: ours.
    """
    mean, deviation = mixtures.features.mean(dim=0), mixtures.features.std(dim=0, correction=0)
    deviation = deviation.where(deviation > LEAST_DEVIATION, torch.inf)  # what is always the same tells nothing
    standardised = (mixtures.features - mean) / deviation  # (N, 5)
    bias, slopes = torch.zeros(1, requires_grad=True), torch.zeros(len(FEATURES), requires_grad=True)
    optimizer = torch.optim.LBFGS([bias, slopes], max_iter=100, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        weight = (standardised @ slopes + bias).sigmoid()
        leaf = weight.detach().requires_grad_()
        total = weight_decay * slopes.square().sum()
        total.backward()
        for loss in mixtures.losses(leaf):
            loss.backward()
            total = total + loss.detach()
        weight.backward(leaf.grad)
        return total

    with torch.enable_grad():
        optimizer.step(objective)
    folded = slopes.detach() / deviation
    values = [float(bias.detach() - folded @ mean), *folded.tolist()]
    return dict(zip(SECOND_LOOK, values, strict=True))


def gains_with_second_look(config: Any, decisions: Decisions, gate_prob: Tensor, weights: Weights) -> Tensor:
    """
    Compute what each round adds to the probability of the target `(N, R)` for those who look again after it.

    Args:
        config: of the model.
        decisions: N queries that thought R rounds, measured with what a second look reads.
        gate_prob: `(N,)` of the gate, before the first round.
        weights: of the second look.
    """
    number, rounds = decisions.gains.shape
    after = [decisions.probabilities[:, 0]]
    for depth in range(1, rounds + 1):
        mixtures = Mixtures.of(config, decisions, gate_prob, np.full(number, depth))
        after.append(mixtures.outcomes(mixtures.weight(weights))[0])
    return torch.stack(after, dim=1).diff(dim=1)


def taught_second_look(
    config: Any,
    decisions: Decisions,
    gate_probs: Tensor,
    stops: npt.NDArray[np.int64],
    kept: npt.NDArray[np.bool_],
    folds: npt.NDArray[np.int64],
) -> dict[str, Any]:
    """
    Fit a model's second look, and keep it in the config if it makes targets more probable where it was not fitted to.

    Args:
        config: of the model, whose `second_look` is set, or left at `None`.
        decisions: N queries that thought R rounds, measured with what a second look reads.
        gate_probs: `(N, R)` of the gate, before each round.
        stops: `(N,)` after how many rounds the gate stops.
        kept: `(N,)` which queries are held out to measure it on. None: it is judged by cross-validation, and what is
            reported of it besides is of the queries that it was fitted to.
        folds: `(N,)` number of the part of each query in a cross-validation.

    Returns:
        `weights`; whether it is `saved`; mean `target probability` on queries that it was not fitted to, `without` and
        `with` it; and hit@1 of `always-second-look` and `auto-second-look`.
    """
    last = Mixtures.of(config, decisions, gate_probs[:, 0], np.full(len(kept), decisions.gains.shape[1]))
    weights = fit_second_look(last.some(np.flatnonzero(~kept)))
    measured = np.flatnonzero(kept if kept.any() else ~kept)
    if kept.any():
        judged = last.some(measured)
        after = judged.outcomes(judged.weight(weights))[0]
    else:
        after = _cross_validated(last, folds)
    before = decisions.probabilities[measured, -1]
    without, with_ = float(before.mean()), float(after.mean())
    saved = with_ > without
    if saved:
        config.second_look = weights
    else:
        logger.warning(
            "The second look is not saved: on queries that it was not fitted to, it gives targets a mean probability "
            "of %.4f, and the vectors after the rationales alone %.4f. Give more pairs, or do without it.",
            with_,
            without,
        )
    return {
        "weights": weights,
        "saved": saved,
        "judged on": "held-out queries" if kept.any() else f"{len(set(folds.tolist()))}-fold cross-validation",
        "target probability": {"without": without, "with": with_},
        **_hits(last.some(measured), weights, config, gate_probs[measured, 0], stops[measured]),
    }


def _cross_validated(mixtures: Mixtures, folds: npt.NDArray[np.int64]) -> Tensor:
    """Compute the probability of each target `(N,)`, by weights that were fitted to the other folds."""
    after = torch.zeros(len(folds))
    for fold in sorted(set(folds.tolist())):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        part = mixtures.some(inside)
        after[inside] = part.outcomes(part.weight(fit_second_look(mixtures.some(outside))))[0]
    return after


def _hits(
    last: Mixtures, weights: Weights, config: Any, gate_prob: Tensor, stops: npt.NDArray[np.int64]
) -> dict[str, float]:
    """Measure hit@1 of both modes with a second look: after all rounds, and after those that the gate wants."""
    decisions = last.decisions
    asked = Mixtures.of(config, decisions, gate_prob, np.maximum(stops, 1))
    thought = torch.from_numpy(stops > 0)[:, None]
    auto = torch.where(thought, asked.vectors(asked.weight(weights)), asked.direct)
    ranks = {"always": last.outcomes(last.weight(weights))[1], "auto": outcomes_of(decisions, auto)[1]}
    return {mode: float((ranks[plain] == 1).mean()) for mode, plain in LOOKING.items()}


def cross_validation_folds(keys: Sequence[bytes], order: Iterator[int], number: int = FOLDS) -> npt.NDArray[np.int64]:
    """
    Put N queries into folds `(N,)`, those with equal keys together.

    Args:
        keys: of each query.
        order: of the different keys, in ascending order, from `random_order`.
        number: of folds; fewer if there are not as many different keys.

    Raises:
        ValueError: if all queries are equal.

    >>> cross_validation_folds([b"b", b"a", b"b"], iter([1, 0]), 2).tolist()
    [0, 1, 0]
    """
    distinct = sorted(set(keys))
    if len(distinct) < 2:
        raise ValueError(
            "all queries are equal, and a second look is judged on others than it is fitted to; give more."
        )
    fold = {distinct[place]: turn % min(number, len(distinct)) for turn, place in enumerate(order)}
    return np.array([fold[key] for key in keys])
