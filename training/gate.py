"""Fit, calibrate and watch the reasoning gate."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl

from mmemb_r1.modeling.heads_mmemb_r1 import ReasoningGate


def gate_loss(logits: Tensor, gap: Tensor, cost: float | Tensor, weights: Tensor | None = None) -> Tensor:
    """
    Compute the cross-entropy of gate logits `(B,)` against the sign of the net utility, weighted by what is at stake.

    Args:
        gap: `(B,)` what a rationale added to the target's probability.
        cost: what it has to add to be worth its time: one number, or `(B,)`. Where nothing is gained, it is what is at
            stake: at 0 the gate is free to think there.
        weights: `(B,)` further weights of the inputs. Default: none.

    Returns:
        Scalar. Source: utility gap of the paper; the weighting is ours.

    >>> round(gate_loss(torch.zeros(2), torch.tensor([0.5, -0.5]), cost=0.0).item(), 4)  # log 2
    0.6931
    """
    net = gap - cost
    losses = nn.functional.binary_cross_entropy_with_logits(logits, (net > 0).float(), reduction="none")
    stake = net.abs() if weights is None else net.abs() * weights
    return (losses * stake).sum() / stake.sum().clamp(min=1e-8)


def fit_gate(
    gate: nn.Module,
    inputs: Tensor,
    gap: Tensor,
    cost: float | Tensor = 0.02,
    weight_decay: float = 0.1,
    weights: Tensor | None = None,
    scale: Tensor | None = None,
) -> dict[str, float]:
    """
    Fit a [`ReasoningGate`], in place, to utility gaps that were measured where it read `inputs` `(B, G)`.

    Args:
        gap, cost, weights: see [`gate_loss`].
        weight_decay: of the squared weights (not the bias).
        scale: `(G,)` by which inputs are divided for the fit, so that the decay weighs on all of them alike; the gate
            reads them as they are afterwards. Default: 1 each.

    Returns:
        `loss`, and the shares of inputs on which the gate `thinks` (at a half) and thinking `pays`.
    """
    if len(inputs) == 0 or len(inputs) != len(gap):
        raise ValueError(f"{len(inputs)} inputs and {len(gap)} gaps: as many of each are needed, at least one.")
    first = next(parameter for parameter in gate.parameters() if parameter.ndim > 1)  # which sees the inputs
    inputs, gap = inputs.detach().to(first.dtype).clone(), gap.detach().clone()
    scale = torch.ones_like(inputs[0]) if scale is None else scale.to(inputs)
    inputs /= scale
    with torch.no_grad():
        first.mul_(scale)
    matrices = [parameter for parameter in gate.parameters() if parameter.ndim > 1]
    optimizer = torch.optim.LBFGS(gate.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = gate_loss(gate(inputs), gap, cost, weights)
        loss = loss + weight_decay * sum(matrix.square().sum() for matrix in matrices)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    gate.zero_grad(set_to_none=True)
    with torch.no_grad():
        logits = gate(inputs)
        loss = float(gate_loss(logits, gap, cost, weights))
        first.div_(scale)
    return {"loss": loss, "thinks": float((logits >= 0).float().mean()), "pays": float((gap > cost).float().mean())}


def input_scale(inputs: Tensor, names: Sequence[str]) -> Tensor:
    """
    Compute by what a gate's inputs `(N, G)`, those of `names` side by side, are divided for a fit: `(G,)`.

    States stay as they are. Word embeddings vary a hundred times less, and are made to vary as much as states do or,
    alone, by 1 on average.

    >>> input_scale(torch.tensor([[1.0, 0.02], [-1.0, 0.0]]), ["state", "words"]).tolist()
    [1.0, 0.009999999776482582]
    """
    parts = dict(zip(names, inputs.float().chunk(len(names), dim=1), strict=True))
    spread = {name: part.var(dim=0, correction=0).mean().sqrt().clamp(min=1e-8) for name, part in parts.items()}
    wanted = spread.get("state", torch.ones(()))
    scales = [
        torch.ones_like(part[0]) if name == "state" else (spread[name] / wanted).expand_as(part[0])
        for name, part in parts.items()
    ]
    return torch.cat(scales)


LEAST_SCALE = 1e-3  # of the largest deviation: a dimension that hardly varies is not blown up


class StandardisedGate:
    """
    Lets an optimiser see a layer's weights as if its inputs had mean 0 and deviation 1.

    Hidden states have a large part in common. A step of Adam along it moves the logits of all inputs together, by the
    learning rate times the states' 1-norm, and drowns what tells inputs apart. With inputs (h - mean) / scale, weights
    v = w * scale and the bias b + w mean, the layer computes the same, and what inputs have in common is the bias's.

    Around each step of the optimiser, weights and gradients are changed to these coordinates and back; its moments are
    of these coordinates. Between steps the layer is as it always is, also when it is saved. Source: ours.

    Args:
        weight, bias: `(O, H)` and `(O,)`. Others may take their place in the optimiser later, as FSDP2 has it.
        hidden: `(N, H)` inputs to standardise by, or what gives them when a step is taken. Where that is `None`, the
            step is an empty one, with which FSDP2 makes the state of an optimiser that goes on, and nothing is done.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter, hidden: Tensor | Callable[[], Tensor | None]) -> None:
        self.weight, self.bias = weight, bias
        self._hidden = hidden if callable(hidden) else lambda: hidden
        self._places: list[tuple[int, int]] = []  # group of the optimiser, and number in it
        self._statistics: tuple[Tensor, Tensor] | None = None

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Do so around each step of this optimiser, which has both among its parameters, from now on."""
        places = {
            id(parameter): (number, place)
            for number, group in enumerate(optimizer.param_groups)
            for place, parameter in enumerate(group["params"])
        }
        self._places = [places[id(parameter)] for parameter in (self.weight, self.bias)]
        optimizer.register_step_pre_hook(self._enter)
        optimizer.register_step_post_hook(self._leave)

    def _statistics_of(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return mean and scale `(H,)` of the inputs, in the form of the weight, if there are inputs."""
        if self._statistics is None:
            if (hidden := self._hidden()) is None:
                return None
            hidden = hidden.to(weight.device, torch.float32)
            mean, scale = hidden.mean(dim=0), hidden.std(dim=0, correction=0)
            scale = scale.clamp(min=max(LEAST_SCALE * float(scale.max()), 1e-8))
            self._statistics = _like(mean.to(weight.dtype), weight), _like(scale.to(weight.dtype), weight)
        return self._statistics

    @torch.no_grad()
    def _enter(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.weight, self.bias = (optimizer.param_groups[group]["params"][place] for group, place in self._places)
        if (statistics := self._statistics_of(self.weight)) is None:
            return
        mean, scale = statistics
        self.bias.add_(_placed_as(self.bias, self.weight @ mean))
        self.weight.mul_(scale)
        if self.weight.grad is not None and self.bias.grad is not None:
            common = self.bias.grad[:, None] * mean  # (O, H)
            self.weight.grad.sub_(_placed_as(self.weight.grad, common)).div_(scale)

    @torch.no_grad()
    def _leave(self, *_: Any) -> None:
        if self._statistics is None:
            return
        mean, scale = self._statistics
        self.weight.div_(scale)
        self.bias.sub_(_placed_as(self.bias, self.weight @ mean))


def train_apart(
    optimizer: torch.optim.Optimizer, gate: ReasoningGate, learning_rate: float, hidden: Callable[[], Tensor | None]
) -> None:
    """
    Put the parameters of a [`ReasoningGate`] into a group of an optimiser's of their own, without weight decay and in
    coordinates of their own, see [`StandardisedGate`], whose inputs `hidden` gives. It is done once.
    """
    if any(group.get("is_gate") for group in optimizer.param_groups):
        return
    own = {id(weight) for weight in gate.parameters()}
    moved = [weight for group in optimizer.param_groups for weight in group["params"] if id(weight) in own]
    for group in optimizer.param_groups:
        group["params"] = [weight for weight in group["params"] if id(weight) not in own]
    optimizer.add_param_group({"params": moved, "lr": learning_rate, "weight_decay": 0.0, "is_gate": True})
    named = {name: weight for name, weight in gate.named_parameters() if name.startswith(gate.first)}
    weight, bias = (
        next(one for name, one in named.items() if name.endswith(kind) and one.requires_grad)
        for kind in ("weight", "bias")
    )
    StandardisedGate(weight, bias, hidden).attach(optimizer)


def _placed_as(other: Any, value: Any) -> Tensor:
    """Shard a value as another tensor is sharded, if that one is."""
    return value.redistribute(placements=other.placements) if hasattr(other, "placements") else value


def _like(value: Tensor, weight: Tensor) -> Tensor:
    """Give all processes the same value, in a form that computes with a weight that may be sharded."""
    from torch.distributed.tensor import DTensor, Replicate

    if not isinstance(weight, DTensor):
        return value
    mesh = weight.device_mesh
    return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)


logger = logging.getLogger(__name__)
LEAST = 0.01


class StopOnCollapse(TrainerCallback):
    """Stops training when the gate thinks on almost nothing, or almost everything, in `patience` logs in a row."""

    def __init__(self, patience: int) -> None:
        self.patience, self.seen = patience, 0

    def on_log(self, args: Any, state: Any, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        share = (logs or {}).get("gate/thinks")
        if share is None:
            return
        self.seen = self.seen + 1 if min(share, 1 - share) < LEAST else 0
        if self.seen >= self.patience:
            logger.warning(
                "The gate thinks on %.1f %% of the queries since %d logs: training stops. Change cost_weight, or "
                "start from a gate that was warm-started.",
                100 * share,
                self.seen,
            )
            control.should_training_stop = True


def calibrated_threshold(gate_probs: npt.ArrayLike, target: float, costs: npt.ArrayLike | None = None) -> float:
    """
    Find the lowest threshold, in 0 ... 1, at which thinking costs no more than wanted, on average over the inputs.

    Inputs with the same probability think together or not at all. The threshold lies half-way between the last
    probability that thinks and the next, so that rounding on another machine moves neither across.

    Args:
        gate_probs: `(N,)` probabilities of thinking.
        target: mean cost of an input.
        costs: `(N,)` what each costs if it thinks, for example its tokens. Default: 1 each, so that `target` is the
            invocation rate, 0 to 1.

    Raises:
        ValueError: if there are no inputs, a number is not finite or negative, or the gate is certain of too many.

    >>> calibrated_threshold([0.1, 0.2, 0.6, 0.8], target=0.5)
    0.4
    >>> calibrated_threshold([0.1, 0.2, 0.6, 0.8], target=4.0, costs=[9, 9, 9, 16])
    0.7
    """
    probs = np.asarray(gate_probs, dtype=np.float64)
    prices = np.ones_like(probs) if costs is None else np.asarray(costs, dtype=np.float64)
    if probs.ndim != 1 or not len(probs) or prices.shape != probs.shape:
        raise ValueError(f"got {probs.shape} probabilities and {prices.shape} costs; both have to be (inputs,).")
    for name, values in (("probability", probs), ("cost", prices), ("target", np.array([target]))):
        if not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError(f"a {name} is negative or not finite; allowed: finite numbers from 0 on.")
    order = np.argsort(-probs, kind="stable")
    spent = np.cumsum(prices[order]) / len(probs)
    ends = np.flatnonzero(np.append(np.diff(probs[order]) < 0, True))  # the last of each probability
    fits = ends[spent[ends] <= target + 1e-12]
    number = int(fits[-1]) + 1 if len(fits) else 0  # inputs that think
    if number == len(probs):
        return 0.0
    highest = probs[order[number]]  # of those that don't
    lowest = probs[order[number - 1]] if number else 1.0
    threshold = float((highest + lowest) / 2)
    if not highest < threshold:
        raise ValueError(
            f"the gate is certain ({highest:g}) of more inputs than may think; raise the target, or train the gate."
        )
    return threshold
