"""Train the gate alone: measure on a table of pairs where thinking pays, and fit the gate to that."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from torch import Tensor

from mmemb_r1.content import content_key, inputs_of
from mmemb_r1.evaluation.invocation import LEAST_GAP, auc
from mmemb_r1.evaluation.settings import LOOKING
from mmemb_r1.modeling.heads_mmemb_r1 import ReasoningGate
from mmemb_r1.modeling.options_mmemb_r1 import GATE_INPUTS
from mmemb_r1.modeling.paths_mmemb_r1 import num_control_tokens
from mmemb_r1.rationale_tokens import rationale_suffix
from mmemb_r1.seeding import random_order, seeded_random
from mmemb_r1.sentence_transformers import MMEmbR1
from mmemb_r1.training.base_trainer import drop_second_look, pairs_facts, with_help
from mmemb_r1.training.gate import fit_gate, input_scale
from mmemb_r1.training.gate_decisions import Decisions, competitions_of, measure_decisions, only_of
from mmemb_r1.training.joint.data import SelectedRationales, check_selected
from mmemb_r1.training.second_look import (
    cross_validation_folds,
    gains_with_second_look,
    taught_second_look,
)
from mmemb_r1.training.tables import plain_column, stored_column

logger = logging.getLogger(__name__)
GATE_FILE = "gate.json"  # what `train_gate` returned, where it is kept
NEGATIVES = ("table", "in-batch")
# Of what was embedded: others embed nothing anew.
FIT_SETTINGS = ("holdout", "cost", "token_price", "temperature", "weight_decay")


@with_help
@dataclass(frozen=True)
class GateConfig:
    """
    How [`train_gate`] measures where thinking pays, and fits the gate.

    Args:
        negatives: what a target competes with: `"table"`, all other targets of its task, or `"in-batch"`, those of
            `batch_size` pairs of its task, drawn at random. Candidates that are given take their place.
        max_reasoning_rounds: rationales of a query at most, each with a decision to fit; the model keeps it. Default:
            the model's.
        holdout: share of the queries, equal ones together, to measure on, not to fit to. At 0 all are for both.
        cost: what a rationale has to gain, as probability of the target, to be worth its time, however short it is.
        token_price: what each of its tokens has to gain beside that. The higher, the fewer rationales; GRPO's
            `cost_weight` is the price of a whole budget, `max_reasoning_tokens` of these.
        temperature: divides the cosine similarities.
        weight_decay: of the gate's weights.
        gate_inputs: what the gate reads, `"state"`, `"words"` or `"state,words"`, see [`MMEmbR1Config`]; the model
            keeps it. Default: what the model's gate reads.
        batch_size: inputs that are read at once.
        second_look: also fit the second look, which keeps the vector after a rationale, takes it back or mixes it with
            the direct one, by how likely the model found what it wrote. It is saved if it is worth something on
            held-out queries (with `holdout` 0, in cross-validation).
        seed: of the batches of `"in-batch"`, and of what is held out.
    """

    negatives: str = "table"
    max_reasoning_rounds: int | None = None
    holdout: float = 0.2
    cost: float = 0.02
    token_price: float = 0.0
    temperature: float = 0.02
    weight_decay: float = 0.1
    gate_inputs: str | None = None
    batch_size: int = 32
    second_look: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        least = 2 if self.negatives == "in-batch" else 1
        allowed = {
            "negatives": (self.negatives in NEGATIVES, ", ".join(NEGATIVES)),
            "holdout": (0 <= self.holdout < 1, "a share of the queries, from 0 to below 1"),
            "max_reasoning_rounds": (self.max_reasoning_rounds is None or self.max_reasoning_rounds >= 1, "1 or more"),
            "batch_size": (self.batch_size >= least, "1 or more, 2 or more with in-batch negatives"),
            "temperature": (self.temperature > 0, "numbers above 0"),
            "token_price": (0 <= self.token_price < math.inf, "0 or more"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "gate_inputs": (
                self.gate_inputs is None or {*self.gate_inputs.split(",")} <= {*GATE_INPUTS},
                f"{', '.join(GATE_INPUTS)}, or several with a comma between them",
            ),
        }
        for name, (fits, text) in allowed.items():
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {text}.")


def train_gate(
    model: MMEmbR1,
    pairs: Dataset,
    config: GateConfig | None = None,
    candidates: Dataset | None = None,
    *,
    rationales: Dataset | None = None,
    folder: Path | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """
    Fit a model's gate to where thinking pays; everything else stays as it is.

    Every query is embedded directly and after each of its rationales: the model's own, those of its thinker if it has
    one (`MMEmbR1.thinker`), or given ones. Thinking pays where it makes the target more probable among its
    competitors, by more than it costs. Use pairs that the model was not trained on: what it knows by heart it finds
    with and without thinking.

    Args:
        pairs: a pairs table with `pair_id`, `query` and `target`, and optionally `task`. With `candidates` the columns
            are `task`, `complexity`, `query`, `candidate_set` and `target_id`.
        candidates: a table with `candidate_set`, `candidate_id` and `input`: each target competes with its set.
        rationales: a table with `pair_id`, `side` and `text`, and optionally `posterior`, as `mmemb-r1 rationales` and
            `select` write it: queries think these, one each, drawn by its posterior where there are several. Queries
            without one are left out. Default: the model writes its own, which it has to have learnt, or its thinker
            does.
        folder: keeps what was embedded, so that a run that was killed goes on there, and another `cost` or `holdout`
            embeds nothing anew. Default: nothing is kept. What was embedded for another run is a `ValueError`.
        progress: show bars on standard error, if that is a terminal; without them, progress is logged every 30 seconds
            (`mmemb_r1.progress`, level INFO). Default: `True`.

    Returns:
        Numbers of `pairs`, of those `without a rationale`, `fitted` and `held out`; of the fit its `loss` and the
        shares of decisions where thinking `pays` and the gate `thinks`; and `measured`, see [`measured_gate`]. With
        `second_look` of the config also what [`taught_second_look`] returns.

    Raises:
        ValueError: if a table is not what it has to be, a target has no competitor, or too few queries are left; if
            the model can't have a second look.
    """
    config = config or GateConfig()
    network = model.eval()[0].model
    if config.second_look:
        _check_second_look(model)
    drop_second_look(network.config)
    rounds = _rounds(model, config, rationales)
    batch_size = config.batch_size if config.negatives == "in-batch" else None
    competitions = competitions_of(pairs, candidates, batch_size, config.seed)
    rows, given = np.arange(len(pairs)), None
    if rationales is not None:
        rows, given = given_rationales(model, pairs, rationales, config.seed)
        competitions = only_of(competitions, rows)
    network.config.max_reasoning_rounds = rounds
    if config.gate_inputs is not None:
        let_gate_read(network, config.gate_inputs.split(","))
    queries = inputs_of((pairs if given is None else pairs.select(rows))["query"])
    keys = [content_key(query) for query in queries]
    kept = held_out(keys, config.holdout, config.seed)
    folds = _folds(keys, config.seed) if config.second_look else None
    how: dict[str, Any] = {"rounds": rounds, "batch_size": config.batch_size, "temperature": config.temperature}
    how |= {"for_second_look": config.second_look, "folder": folder, "progress": progress}
    decisions = measure_decisions(model, queries, competitions, given=given, **how)
    return {
        "pairs": len(pairs),
        "rationales": "given" if given is not None else "the model's own" if model.thinker is None else "a thinker's",
        "without a rationale": len(pairs) - len(rows),
        "fitted": int((~kept).sum()),
        "held out": int(kept.sum()),
        "competitors": "candidates" if candidates is not None else config.negatives,
        "rounds": rounds,
        "cost": config.cost,
        "token price": config.token_price,
        "gate reads": list(network.config.gate_inputs),
        **fitted_and_measured(network, decisions, kept, config, folds),
    }


def _check_second_look(model: MMEmbR1) -> None:
    """Refuse to fit a second look to a model that can't have one."""
    config = model[0].model.config
    reasons = {
        "a thinker writes its rationales, and how likely the model finds them is not known; leave the thinker out": (
            model.thinker is not None
        ),
        "its direct and reasoned vectors are two spaces, and can't be mixed": config.spaces == 2,
        f"truncate_dim={config.truncate_dim} of its config shortens vectors, which are mixed before that; set it to "
        "None, and again after the fit": config.truncate_dim is not None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"A second look can't be fitted to this model: {reason}.")


def _folds(keys: Sequence[bytes], seed: int) -> npt.NDArray[np.int64]:
    return cross_validation_folds(keys, random_order(len(set(keys)), seeded_random(seed, "folds")))


def let_gate_read(network: Any, names: Sequence[str]) -> None:
    """Let the gate of an [`MMEmbR1Model`] read these inputs, see [`MMEmbR1Config`]; if they are others, it is new."""
    before = network.config.gate_inputs
    network.config.gate_inputs = names
    if network.config.gate_inputs != before:
        gate = ReasoningGate(network.config)
        gate.reset()
        network.gate = gate.to(network.device, network.dtype)


def _rounds(model: MMEmbR1, config: GateConfig, rationales: Dataset | None) -> int:
    """Tell how often a query may think: once, where it thinks what others wrote."""
    if rationales is not None and model.thinker is not None:
        raise ValueError(
            "There are rationales and a thinker, and a query thinks one rationale; leave one of the two out."
        )
    of_others = rationales is not None or model.thinker is not None
    rounds = config.max_reasoning_rounds or (1 if of_others else model[0].model.config.max_reasoning_rounds)
    if of_others and rounds > 1:
        raise ValueError(
            f"max_reasoning_rounds is {rounds}, but a given rationale, or a thinker's, is one round; leave one of the "
            "two out."
        )
    return rounds


def fitted_and_measured(
    network: Any,
    decisions: Decisions,
    kept: npt.NDArray[np.bool_],
    config: GateConfig,
    folds: npt.NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """
    Fit a model's gate to decisions, but those of the queries that are `kept` `(N,)` to measure it on, or of none; and
    its second look, where there are `folds` `(N,)` to judge it by.

    A second look takes back some of what rationales lose: where it is saved, the gate is fitted once more, to what
    they gain with it, and it is fitted to that gate.

    Returns:
        What [`fit_gate`] does, and `measured`, see [`measured_gate`].
    """
    own, measured = np.flatnonzero(~kept), np.flatnonzero(kept if kept.any() else ~kept)
    device, dtype = network.device, network.dtype
    gate = network.gate.float().cpu()  # small steps vanish in bfloat16
    inputs = decisions.inputs[own].flatten(0, 1)
    costs = decisions.of(own).costs(config.cost, config.token_price).flatten()
    scale = input_scale(inputs, network.config.gate_inputs)

    def fit(gains: Tensor) -> dict[str, float]:
        return fit_gate(gate, inputs, gains[own].flatten(), costs, config.weight_decay, scale=scale)

    def look_again(parts: npt.NDArray[np.int64]) -> dict[str, Any]:
        network.config.second_look = None
        probs, stops = rounds_wanted(gate, decisions, network.config.gate_threshold)
        return taught_second_look(network.config, decisions, probs, stops, kept, parts)

    facts: dict[str, Any] = fit(decisions.gains)
    if folds is not None and (look := look_again(folds))["saved"]:
        probs, _ = rounds_wanted(gate, decisions, network.config.gate_threshold)
        facts = fit(gains_with_second_look(network.config, decisions, probs[:, 0], look["weights"]))
        look = look_again(folds)
        if not look["saved"]:
            facts = fit(decisions.gains)
    worth = measured_gate(gate, decisions.of(measured), network.config.gate_threshold, config)
    gate.to(device, dtype)
    return {**facts, "measured": worth, **({} if folds is None else {"second look": look})}


def given_rationales(
    model: MMEmbR1, pairs: Dataset, rationales: Dataset, seed: int
) -> tuple[npt.NDArray[np.int64], list[list[int]]]:
    """
    Find the rows `(N,)` of a pairs table whose query has a rationale in a table, and N rationales as token ids, with
    what surrounds them. None at all is a `ValueError`.
    """
    check_selected(rationales)
    known = stored_column(rationales, "text").is_valid().to_numpy()  # a worker that failed wrote none
    selected = SelectedRationales(rationales if known.all() else rationales.select(np.flatnonzero(known)))
    config, rows, given = model[0].model.config, [], []
    for row, pair_id in enumerate(plain_column(pairs, "pair_id")):
        drawn = selected.draw(pair_id, "query", np.random.default_rng((seed, row)))
        if drawn is not None:
            rows.append(row)
            given.append(rationale_suffix(model.processor, config, drawn.text))
    if not rows:
        raise ValueError(
            "no query of the pairs table has a rationale in the table of rationales; give both of the same pairs."
        )
    budget = config.max_reasoning_tokens
    if longer := sum(len(ids) - num_control_tokens(config) > budget for ids in given):
        logger.warning(
            "%d of %d given rationales are longer than what the model writes, %d tokens (max_reasoning_tokens of its "
            "config): where it thinks itself, they will be cut.",
            longer,
            len(given),
            budget,
        )
    return np.array(rows), given


@torch.no_grad()
def rounds_wanted(
    gate: torch.nn.Module, decisions: Decisions, threshold: float
) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """Ask a gate for its probabilities `(N, R)` before each round, and how many rounds `(N,)` queries think by it."""
    probs = gate(decisions.inputs.flatten(0, 1)).sigmoid().view(decisions.inputs.shape[:2])  # (N, R)
    thinks = torch.cat([probs >= threshold, torch.zeros(len(probs), 1, dtype=torch.bool)], dim=1)  # (N, R + 1)
    return probs, (~thinks).int().argmax(dim=1).numpy()


def measured_gate(gate: torch.nn.Module, decisions: Decisions, threshold: float, config: GateConfig) -> dict[str, Any]:
    """
    Measure what a gate's decisions are worth.

    Returns:
        Number of `queries`; shares of decisions where thinking `pays`, of queries that think (`invocation rate`), and
        of the `tokens` that they would all write; `auc` of telling gains from losses of at least 0.1 (`None` if one of
        them is missing); hit@1 of three modes.
    """
    probs, stops = rounds_wanted(gate, decisions, threshold)
    hits, gains = decisions.ranks == 1, decisions.gains  # (N, R + 1), (N, R)
    large = gains.abs() >= LEAST_GAP
    signs = (gains[large] > 0).numpy()
    both = signs.any() and not signs.all()
    spent = np.concatenate([np.zeros((len(probs), 1)), decisions.tokens.cumsum(dim=1).numpy()], axis=1)  # (N, R + 1)
    return {
        "queries": len(probs),
        "pays": float((gains > decisions.costs(config.cost, config.token_price)).float().mean()),
        "invocation rate": float((stops > 0).mean()),
        "tokens": float(spent[np.arange(len(spent)), stops].sum() / max(spent[:, -1].sum(), 1)),
        "threshold": threshold,
        "auc": float(auc(probs[large].numpy(), signs)[0]) if both else None,
        "never": float(hits[:, 0].mean()),
        "always": float(hits[:, -1].mean()),
        "auto": float(hits[np.arange(len(hits)), stops].mean()),
    }


def gate_report(facts: Mapping[str, Any]) -> list[str]:
    """Write the lines that tell what [`train_gate`] returned."""
    measured = facts["measured"]
    where = "held-out queries" if facts["held out"] else "queries that it was fitted to (none were held out)"
    thought = {"given": "given rationales", "a thinker's": "a thinker's rationales"}.get(
        facts["rationales"], "the model's rationales"
    )
    fitted = f"fitted to {facts['fitted']:,} of {facts['pairs']:,} pairs with {thought}"
    price = f"{facts['cost']:g}" + (f" and {facts['token price']:g} per token" if facts["token price"] else "")
    auc_ = "not known: thinking helps all or none" if measured["auc"] is None else f"{measured['auc']:.3f}"
    return [
        f"{fitted}; on {measured['queries']:,} {where}:",
        f"  thinking pays          {measured['pays']:6.1%}  (the target gains more than {price})",
        f"  the gate thinks        {measured['invocation rate']:6.1%}  (threshold {measured['threshold']:.3g}; "
        f"{measured['tokens']:.0%} of the tokens of always)",
        f"  AUC of the gate        {auc_}",
        "  hit@1                  "
        + ", ".join(f"{mode} {measured[mode]:.3f}" for mode in ("never", "always", "auto")),
        *_second_look_report(facts.get("second look")),
    ]


def _second_look_report(facts: Mapping[str, Any] | None) -> list[str]:
    if facts is None:
        return []
    probability = facts["target probability"]
    return [
        "  with a second look     " + ", ".join(f"{plain} {facts[mode]:.3f}" for mode, plain in LOOKING.items()),
        f"  target probability     {probability['without']:.4f} without, {probability['with']:.4f} with it (always, "
        f"{facts['judged on']}): {'saved' if facts['saved'] else 'not saved'}",
    ]


def gate_facts(facts: Mapping[str, Any], weights: str, pairs: Dataset) -> dict[str, Any]:
    """
    Tell a model card what [`train_gate`] returned for these pairs; `weights` is the fingerprint of the model that it
    began with.
    """
    measured = facts["measured"]
    where = f"{measured['queries']:,} held-out queries" if facts["held out"] else "the queries that it was fitted to"
    return {
        "phase": "gate",
        "started from weights": weights,
        **pairs_facts(pairs),
        "competitors of a target": facts["competitors"],
        "cost of thinking": facts["cost"],
        "price of a token": facts["token price"],
        "rationales": facts["rationales"],
        "gate": f"on {where} thinking pays for {measured['pays']:.1%}, the gate thinks on "
        f"{measured['invocation rate']:.1%}",
        **({} if "second look" not in facts else {"second look": _second_look_fact(facts["second look"])}),
    }


def _second_look_fact(facts: Mapping[str, Any]) -> str:
    probability = facts["target probability"]
    worth = f"the mean probability of the target is {probability['with']:.4f} with it and {probability['without']:.4f}"
    return f"{'saved' if facts['saved'] else 'not saved'}: by {facts['judged on']}, {worth} without"


def held_out(keys: Sequence[bytes], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Choose which of N queries, `(N,)`, are held out; those with equal keys stay together. Too few are an error."""
    distinct = sorted(set(keys))
    number = round(share * len(distinct))
    if share and not 0 < number < len(distinct):
        raise ValueError(
            f"{share:g} of {len(distinct)} different queries can't be held out; give more, or another share."
        )
    order = random_order(len(distinct), seeded_random(seed, "held out"))
    chosen = {distinct[next(order)] for _ in range(number)}
    return np.array([key in chosen for key in keys])
