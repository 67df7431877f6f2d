"""Log numbers of a batch of the joint phase, and blame rows for a loss that is not finite."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import Tensor

from mmemb_r1.training.joint.losses import PathTerm, PathTerms, mean_where


class Means:
    """Average named numbers, each with a weight, kept on their device, since the means were last taken."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = defaultdict(float)

    def add(self, values: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Add one number of each name."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + weight * value.detach().float()
            self._weights[name] += weight

    def take(self) -> dict[str, float]:
        """Return the means and start anew."""
        means = {name: float(value) / self._weights[name] for name, value in self._sums.items()}
        self._sums.clear()
        self._weights.clear()
        return means


def utility_gap(direct: PathTerm, reasoned: PathTerm) -> Tensor:
    """
    Compute how much a rationale raises the probability `(B,)` of each query's direct target within the batch.

    It has no gradient. Source: utility gap of the paper; the probability of the target as its measure is ours.
    """
    return (-reasoned.query_to_target.detach()).exp() - (-direct.query_to_target.detach()).exp()


def batch_metrics(terms: PathTerms, gate_logits: Tensor, gate_cost: float) -> dict[str, Tensor]:
    """
    Compute numbers that show how training goes.

    Args:
        terms: with the pair (0, 0) at some width, and (1, 0) if any query has a rationale.
        gate_logits: `(B,)` of the direct queries.
        gate_cost: what a rationale has to gain to pay.

    Returns:
        `nce_ab` per pair of paths at full width; `negatives` per query and, of those by keys, the share `masked` by
        score; `accuracy_direct` and `accuracy_reasoned` of the queries with a rationale (of all, where none has),
        their difference `accuracy_gap`, the mean `utility_gap` and `pays`, the share of queries where it is above the
        cost; `gate_prob` and `gate_thinks` of all queries, and `gate_right`, how often it agrees with what pays.
    """
    width = max(dim for dim, _, _ in terms.at)
    found = {(a, b): term for (dim, a, b), term in terms.at.items() if dim == width}
    probability = gate_logits.sigmoid()
    metrics = {f"nce_{a}{b}": term.loss for (a, b), term in found.items()}
    metrics |= {
        "negatives": terms.num_negatives.float().mean(),
        "masked": (terms.num_masked / (terms.num_masked + terms.num_negatives).clamp(min=1)).mean(),
        "gate_prob": probability.mean(),
        "gate_thinks": (probability >= 0.5).float().mean(),
    }
    direct, reasoned = found[0, 0], found.get((1, 0))
    if reasoned is None:
        return {**metrics, "accuracy_direct": direct.hit.float().mean()}
    rows = reasoned.valid
    accuracy = [mean_where(term.hit.float(), rows) for term in (direct, reasoned)]
    gap = utility_gap(direct, reasoned)
    pays = gap > gate_cost
    return metrics | {
        "accuracy_direct": accuracy[0],
        "accuracy_reasoned": accuracy[1],
        "accuracy_gap": accuracy[1] - accuracy[0],
        "utility_gap": mean_where(gap, rows),
        "pays": mean_where(pays.float(), rows),
        "gate_right": mean_where((pays == (probability >= 0.5)).float(), rows),
    }


def blame(what: str, names: Sequence[str]) -> FloatingPointError:
    """Make the error that something is not finite, and in which rows; none are named if they are another process's."""
    whose = f" for {', '.join(names[:8])}" if names else " for rows of another process"
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return FloatingPointError(
        f"{what} is not finite{whose}{more}. Look at these rows; if nothing is wrong with them, lower the learning "
        "rate or raise the temperature, and go on from the last checkpoint."
    )
