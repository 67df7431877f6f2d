"""Find for each of the method's claims the numbers that speak about it, and whether they agree with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import jinja2
import yaml

from experiments.pipeline.tasks import MULTI_HOP, PICTURE_TARGETS
from experiments.study.family import FAMILY, difference_of, direction
from experiments.study.formats import environment
from experiments.study.rows import BY_NAME, FULL

HOLDS, SMALLER, FAILS, UNTESTED = "holds", "holds, but smaller", "does not hold", "cannot be tested here"
OPEN, OPEN_BUT_SMALLER = "not shown", "not shown, and not as large"
NOT_RUN = "not run"
PUBLISHED_POINTS = 0.058  # of selection or its baseline, as a share of 1
LEARNT = 0.1  # share of right rationales below which questions were not learnt
LEAST_COST, MOST_COSINE = 0.10, 0.80  # of a swapped rationale, for a model that reads its own


@dataclass(frozen=True)
class Claim:
    """
    Args:
        text: what is claimed.
        source: who says so.
        published: the figure, or that there is none.
        ours: what the study found.
        verdict: one of the words above.
    """

    text: str
    source: str
    published: str
    ours: str
    verdict: str


class Finding(NamedTuple):
    """The numbers that the sentence of a claim needs, by name, and the verdict."""

    numbers: Mapping[str, Any]
    verdict: str


def claims_of(summary: Mapping[str, Any]) -> Iterator[Claim]:
    """Put the findings of a study into the words of `claims.yaml`; claims whose row was not run say so."""
    words = _words()
    render = environment(jinja2.DictLoader(words["shared"])).from_string
    for claim in words["claims"]:
        found = FINDINGS[claim["id"]](summary)
        ours, verdict = (
            ("-", NOT_RUN) if found is None else (render(claim["ours"]).render(found.numbers), found.verdict)
        )
        yield Claim(claim["text"], words["sources"][claim["source"]], claim["published"], ours, verdict)


@cache
def _words() -> Any:
    return yaml.safe_load((files("experiments.study") / "claims.yaml").read_text(encoding="utf-8"))


def gain_verdict(gain: Mapping[str, Any]) -> str:
    """Whether something is worth anything: its sign beyond chance, see [`direction`]."""
    return {1: HOLDS, 0: OPEN, -1: FAILS}[direction(gain)]


def loss_verdict(difference: Mapping[str, Any], published: float = 0.0) -> str:
    """
    Whether leaving something out costs what was published: beyond chance, with a mean that is not smaller. If it costs
    nothing beyond chance, the interval may still shut out what was published.

    Args:
        difference: score without it minus score with it, of the family.
        published: what it was worth, as a share of 1. Default: no figure, only that it is worth something.

    >>> sure = {"high": -0.001, "p_corrected": 0.01, "seeds": {}}
    >>> loss_verdict({"mean": -0.10, "low": -0.13, **sure}, 0.058)
    'holds'
    >>> loss_verdict({"mean": -0.02, "low": -0.06, **sure}, 0.058)
    'holds, but smaller'
    >>> loss_verdict({"mean": -0.02, "low": -0.06, **sure, "p_corrected": 0.2})
    'not shown'
    >>> loss_verdict({"mean": 0.01, "low": -0.01, "high": 0.03, "p_corrected": 0.2, "seeds": {}}, 0.058)
    'not shown, and not as large'
    """
    if (sign := direction(difference)) > 0:
        return FAILS
    if sign == 0:
        return OPEN_BUT_SMALLER if published and -difference["low"] < published else OPEN
    return HOLDS if -difference["mean"] >= published else SMALLER


def _untested(summary: Mapping[str, Any]) -> Finding:
    return Finding({}, UNTESTED)


def _left_out(name: str, published: float = 0.0) -> Callable[[Mapping[str, Any]], Finding | None]:
    """The finding of a row that leaves something out; `name` is of the family."""

    def find(summary: Mapping[str, Any]) -> Finding | None:
        if (lost := difference_of(summary, name)) is None:
            return None
        _, row, key, *_ = FAMILY[name]
        found = summary["rows"][row][key]
        numbers = {"lost": lost, "auto": found["all"]["auto"], "drawn": _drawn(summary["rows"], row)}
        return Finding({**numbers, "right": found.get("multi-hop", {}).get("right")}, loss_verdict(lost, published))

    return find


def _drawn(rows: Mapping[str, Any], row: str) -> dict[str, list[float]] | None:
    """How much of what two rows draw in training is `right`, and what share of inputs it has `covered`, first of the
    row that this one is compared with; `None` if both train on the same."""
    selections = [(rows.get(name) or {}).get("selection") for name in (BY_NAME[row].control or FULL, row)]
    found = [one for one in selections if one is not None and one["right share"] is not None]
    if len(found) < 2 or BY_NAME[row].joint:
        return None
    return {
        "right": [one["right share"] for one in found],
        "covered": [one["covered"]["several steps"] for one in found],
    }


def _mixed_terms(summary: Mapping[str, Any]) -> Finding | None:
    found = summary["rows"].get("no-mixed-terms", {}).get("differences", {})
    if "multi-hop" not in found:
        return None
    text_targets = len(set(MULTI_HOP) - set(PICTURE_TARGETS))
    numbers = {"text_targets": text_targets, "tasks": len(MULTI_HOP), "change": found["multi-hop"]["always"]}
    return Finding(numbers, UNTESTED)


def _fixed_mode(summary: Mapping[str, Any]) -> Finding | None:
    if (full := summary.get("full")) is None:
        return None
    choice = full["choice"]
    numbers = {name: choice[name] for name in ("better_fixed", "invocation", "headroom")}
    return Finding({**numbers, "gain": full["gain"]}, gain_verdict(full["gain"]))


def _which_input(summary: Mapping[str, Any]) -> Finding | None:
    random = difference_of(summary, "which input")
    return None if random is None else Finding({"random": random}, loss_verdict(random))


def _best_share(summary: Mapping[str, Any]) -> Finding | None:
    """There is a peak between none and all if both ends are beaten, and none if thinking on all beats it."""
    if (full := summary.get("full")) is None:
        return None
    best = full["best"]
    over = {name: best[name] for name in ("over_always", "over_never")}
    signs = [direction(one) for one in over.values()]
    verdict = HOLDS if signs == [1, 1] else FAILS if -1 in signs else OPEN
    return Finding({"best": best["share"], **over}, verdict)


def _speed(summary: Mapping[str, Any]) -> Finding | None:
    if (full := summary.get("full")) is None:
        return None
    choice = full["choice"]
    return Finding({"tokens": choice["tokens"]["mean"] / max(choice["tokens_always"]["mean"], 1e-9)}, UNTESTED)


def _grpo(summary: Mapping[str, Any]) -> Finding | None:
    if (change := difference_of(summary, "grpo")) is None:
        return None
    rates = {
        name: summary["rows"][row]["levels"]["all"]["invocation"]
        for name, row in (("before", "no-grpo"), ("after", FULL))
    }
    return Finding({"change": change, **rates}, loss_verdict(change))


def _gate(summary: Mapping[str, Any]) -> Finding | None:
    if (gain := difference_of(summary, "grpo's gate")) is None:
        return None
    return Finding(summary["rows"]["no-grpo"]["gates"], gain_verdict(gain))


def _shortcut(summary: Mapping[str, Any]) -> Finding | None:
    if (test := (summary["rows"].get(FULL) or {}).get("shortcut")) is None:
        return None
    if (swap := test["interventions"]["swap"]) is None:
        return Finding({"swap": None}, OPEN)
    cost = swap["cost"]
    reads = cost["low"] > 0 and cost["mean"] >= LEAST_COST and swap["cosine"]["mean"] <= MOST_COSINE
    return Finding({"swap": swap}, HOLDS if reads else FAILS)


def _model_joins(summary: Mapping[str, Any]) -> Finding | None:
    if (gain := difference_of(summary, "model joins")) is None:
        return None
    row = summary["rows"]["model-joins"]
    numbers = {"gain": gain, "several": row["control"].get("multi-hop")}
    if numbers["several"] is not None:
        numbers["after_one"] = row["differences"]["multi-hop"]["right"]["theirs"]
    return Finding(numbers, gain_verdict(gain))


def _rounds(summary: Mapping[str, Any]) -> Finding | None:
    if (gain := difference_of(summary, "rounds")) is None:
        return None
    found = summary["rows"]["three-rounds"]["differences"]
    right = found["neighbours"]["right"]
    learnt = max(right.values()) >= LEARNT
    numbers = {"gain": gain, "auto": found["all"]["auto"], "right": right, "learnt": learnt}
    return Finding(numbers, gain_verdict(gain) if learnt else UNTESTED)


FINDINGS: Mapping[str, Callable[[Mapping[str, Any]], Finding | None]] = {
    "headline": _untested,
    "selection": _left_out("selection", PUBLISHED_POINTS),
    "baseline": _left_out("baseline", PUBLISHED_POINTS),
    "baseline, as published": _left_out("baseline, as published", PUBLISHED_POINTS),
    "wrong-pair correction": _left_out("wrong-pair correction"),
    "rationale loss": _left_out("rationale loss"),
    "workers": _untested,
    "errors": _left_out("errors"),
    "mixed terms, all": _mixed_terms,
    "mixed terms": _left_out("mixed terms"),
    "fixed mode": _fixed_mode,
    "which input": _which_input,
    "best share": _best_share,
    "speed": _speed,
    "grpo": _grpo,
    "grpo's gate": _gate,
    "shortcut": _shortcut,
    "model joins": _model_joins,
    "rounds": _rounds,
}
