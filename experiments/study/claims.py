"""The method's claims, one by one: what was published, what the study found, and whether that agrees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.pipeline.tasks import MULTI_HOP, PICTURE_TARGETS
from experiments.study.family import FAMILY, direction, judged
from experiments.study.rows import BY_NAME, FULL
from experiments.study.wording import lost_or_gained, points, tested

PAPER = "arXiv 2604.06156"
PEER = "users of UME-R1 (arXiv 2511.00405)"
OURS = "ours, not the paper's"
HOLDS, SMALLER, FAILS, UNTESTED = "holds", "holds, but smaller", "does not hold", "cannot be tested here"
OPEN, OPEN_BUT_SMALLER = "not shown", "not shown, and not as large"
NOT_RUN = "not run"
NO_FIGURE = "no figure known"
LEARNT = 0.1  # share of right thoughts below which questions were not learnt
# What explains a figure, by how Atlas and the method are made.
WHY = {
    "selection": "Three of the pool's four workers do not help, by construction: the sign says something, the size is "
    "that of this pool",
    "baseline": "The baseline is one number for all rationales of an input: it decides whether any are kept, hardly "
    "which one is drawn",
}


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


def claims_of(summary: Mapping[str, Any]) -> Iterator[Claim]:
    """All claims; those whose row was not run say so."""
    yield Claim(
        "71.2 on MMEB-V2 with a 4B backbone",
        PAPER,
        "71.2, mean of 78 tasks",
        "needs Qwen3-VL-4B and GPUs; the commands are at the end of docs/study.md",
        UNTESTED,
    )
    for name, text, source, published in (
        ("selection", "pair-aware selection is worth 5.8 points on the reasoned path", PAPER, 0.058),
        ("baseline", "the counterfactual baseline is worth 5.8 points on the reasoned path", PAPER, 0.058),
        ("baseline, as published", "the same, with gains as the paper takes them", PAPER, 0.058),
        ("wrong-pair correction", "taking off what a rationale does for wrong pairs helps", OURS, 0.0),
        ("rationale loss", "a loss on the rationales' tokens in the joint phase helps", OURS, 0.0),
    ):
        yield _worth(summary, name, text, source, published)
    yield from _workers(summary)
    yield from _mixed_terms(summary)
    yield from _adaptive(summary)
    yield from _grpo(summary)
    yield _shortcut(summary["rows"])
    yield from _beyond(summary)


def _worth(summary: Mapping[str, Any], name: str, text: str, source: str, published: float) -> Claim:
    figure = f"{100 * published:.1f} points" if published else NO_FIGURE
    if (lost := judged(summary, name)) is None:
        return Claim(text, source, figure, "-", NOT_RUN)
    _, row, key, *_ = FAMILY[name]
    found = summary["rows"][row][key]
    ours = (
        f"without it reasoned queries of several steps {lost_or_gained(lost)}; auto over all tasks "
        f"{points(found['all']['auto'])}"
    )
    ours += _drawn(summary["rows"], row, BY_NAME[row].control or FULL)
    if name in WHY:
        ours += f". {WHY[name]}"
    if name == "rationale loss":
        ours += f". Thoughts of several steps are right in {_right(found, 'multi-hop')} with it (the same seed)"
    return Claim(text, source, figure, ours, loss_verdict(lost, published))


def _drawn(rows: Mapping[str, Any], row: str, other: str) -> str:
    """How much of what two rows draw in training is right, if they differ in what was selected."""
    selections = [(rows.get(name) or {}).get("selection") for name in (other, row)]
    found = [one for one in selections if one is not None and one["right share"] is not None]
    if len(found) < 2 or BY_NAME[row].joint:
        return ""
    drawn = " and ".join(f"{one['right share']:.0%}" for one in found)
    covered = " and ".join(f"{one['covered']['several steps']:.0%}" for one in found)
    return (
        f". With it and without, {drawn} of what is drawn is right, and {covered} of the inputs of several steps have "
        "any rationale"
    )


def _workers(summary: Mapping[str, Any]) -> Iterator[Claim]:
    yield Claim(
        "several different workers are better than one",
        PAPER,
        NO_FIGURE,
        "a question of Atlas has one right chain of thought, in words that differ little: what one worker sees and "
        "another does not is not there to be found",
        UNTESTED,
    )
    text = "errors of several kinds are better than as many of one kind"
    if (lost := judged(summary, "errors")) is None:
        yield Claim(text, OURS, "-", "-", NOT_RUN)
        return
    ours = (
        "as many rationales of each input, as many of them right: if all others mistake what they see, reasoned "
        f"queries of several steps {lost_or_gained(lost)}{_drawn(summary['rows'], 'one-worker', FULL)}"
    )
    yield Claim(text, OURS, "-", ours, loss_verdict(lost))


def _mixed_terms(summary: Mapping[str, Any]) -> Iterator[Claim]:
    text = "terms between direct and reasoned vectors help reasoned queries"
    where = f"{text}, where targets have rationales too ({' and '.join(PICTURE_TARGETS)})"
    row = summary["rows"].get("no-mixed-terms", {})
    if "multi-hop" in (found := row.get("differences", {})):
        ours = (
            f"{len(set(MULTI_HOP) - set(PICTURE_TARGETS))} of {len(MULTI_HOP)} tasks of several steps have targets "
            "that are text, without rationales: without these terms no contrastive term reaches their reasoned "
            f"queries at all. That these change by {points(found['multi-hop']['always'])} says this and no more"
        )
        yield Claim(text, OURS, "-", ours, UNTESTED)
    else:
        yield Claim(text, OURS, "-", "-", NOT_RUN)
    if (lost := judged(summary, "mixed terms")) is None:
        yield Claim(where, OURS, "-", "-", NOT_RUN)
    else:
        yield Claim(where, OURS, "-", f"without them reasoned queries {lost_or_gained(lost)}", loss_verdict(lost))


def _adaptive(summary: Mapping[str, Any]) -> Iterator[Claim]:
    full = summary.get("full")
    if full is None:
        yield Claim("deciding per input is better than never or always thinking", PAPER, NO_FIGURE, "-", NOT_RUN)
        return
    choice = full["choice"]
    yield Claim(
        "deciding per input is better than never or always thinking",
        PAPER,
        NO_FIGURE,
        f"auto minus {choice['better_fixed']}, the better of both: {tested(full['gain'])}; thinking on "
        f"{choice['invocation']['mean']:.0%}. Whoever knew the better vector of every query would gain "
        f"{points(choice['headroom'])}",
        gain_verdict(full["gain"]),
    )
    text = "what decides is the input, not how often it thinks"
    if (random := judged(summary, "which input")) is None:
        yield Claim(text, OURS, "-", "-", NOT_RUN)
    else:
        ours = f"auto minus a gate that thinks as often at random: {tested(random, -1)}"
        yield Claim(text, OURS, "-", ours, loss_verdict(random))
    yield _best_share(full["best"])
    tokens = choice["tokens"]["mean"] / max(choice["tokens_always"]["mean"], 1e-9)
    yield Claim(
        "2.5 times faster than UME-R1, which always thinks",
        PAPER,
        "2.5x",
        f"UME-R1's weights can't be run here; auto writes {tokens:.0%} of the tokens of always",
        UNTESTED,
    )


def _best_share(best: Mapping[str, Any]) -> Claim:
    """There is a peak between none and all if both ends are beaten, and none if thinking on all beats it."""
    always, never = best["over_always"], best["over_never"]
    ours = (
        f"best at {best['share']:.0%}, chosen on half of what the questions are about and judged on the other half: "
        f"{tested(always)}, against thinking on all; {tested(never)}, against thinking on none"
    )
    signs = direction(always), direction(never)
    verdict = HOLDS if signs == (1, 1) else FAILS if -1 in signs else OPEN
    return Claim("above a best share of inputs that think, accuracy falls", PAPER, "best at 74.3 %", ours, verdict)


def _grpo(summary: Mapping[str, Any]) -> Iterator[Claim]:
    text = "after GRPO auto is better than with the gate that supervision left"
    gate_text = "GRPO teaches the gate more than supervision on the same pairs did"
    if (found := judged(summary, "grpo")) is None:
        yield Claim(text, PAPER, NO_FIGURE, "-", NOT_RUN)
        yield Claim(gate_text, OURS, "-", "-", NOT_RUN)
        return
    ours = (
        f"it changes auto by {tested(found, -1)}; not by the gate alone: in GRPO's steps the embedder is trained on "
        "pairs as well, so it has had that many more. Thinks on "
        f"{_thinks(summary, 'no-grpo')} before and {_thinks(summary, 'full')} after: its reward counts tokens"
    )
    yield Claim(text, PAPER, NO_FIGURE, ours, loss_verdict(found))
    gates = summary["rows"]["no-grpo"]["gates"]
    before, after = (gates[state]["over_random"] for state in ("before", "after"))
    areas = [_area(gates[state]["auc"]) for state in ("before", "after")]
    ours = (
        f"if both think on {gates['share']:.0%} of all queries, as after GRPO, what they choose is {points(before)} "
        f"better than chance before and {points(after)} after, a change of {tested(gates['gain'])}; area under the "
        f"curve of gains and losses {areas[0]} and {areas[1]}"
    )
    yield Claim(gate_text, OURS, "-", ours, gain_verdict(gates["gain"]))


def _thinks(summary: Mapping[str, Any], row: str) -> str:
    return f"{summary['rows'][row]['levels']['all']['invocation']['mean']:.0%}"


def _right(difference: Mapping[str, Any], group: str) -> str:
    """How often thoughts are right in a row and in the one that it is compared with."""
    right = difference[group]["right"]
    return f"{right['ours']:.0%}, and in {right['theirs']:.0%}"


def _area(gate: Mapping[str, Any] | None) -> str:
    return "unknown" if gate is None or gate["auc"] is None else f"{gate['auc']['mean']:.2f}"


def _shortcut(rows: Mapping[str, Any]) -> Claim:
    text = "the model reads its rationales: another one's costs 10 points or more, cosine at most 0.80"
    published = "a peer that does not: cosine 0.95 to 0.98"
    test = (rows.get("full") or {}).get("shortcut")
    if test is None:
        return Claim(text, PEER, published, "-", NOT_RUN)
    swap = test["interventions"]["swap"]
    if swap is None:
        return Claim(text, PEER, published, "no thoughts to swap", OPEN)
    ours = f"on questions of several steps swapping costs {points(swap['cost'])}, cosine {swap['cosine']['mean']:.2f}"
    reads = swap["cost"]["low"] > 0 and swap["cost"]["mean"] >= 0.10 and swap["cosine"]["mean"] <= 0.80
    return Claim(text, PEER, published, ours, HOLDS if reads else FAILS)


def _beyond(summary: Mapping[str, Any]) -> Iterator[Claim]:
    text = "a round in which the model joins the workers is better than one in which it does not"
    if (gain := judged(summary, "model joins")) is None:
        yield Claim(text, OURS, "the paper optimises no joint rounds", "-", NOT_RUN)
    else:
        row = summary["rows"]["model-joins"]
        ours = f"auto over all tasks {tested(gain)}"
        if (several := row["control"].get("multi-hop")) is not None:
            ours += (
                f"; reasoned queries of several steps {points(several['always'])}. Thoughts of several steps are "
                f"right in {_right(row['control'], 'multi-hop')} without; after one round only, in "
                f"{row['differences']['multi-hop']['right']['theirs']:.0%}"
            )
        yield Claim(text, OURS, "the paper optimises no joint rounds", ours, gain_verdict(gain))
    text = "up to three rounds of reasoning help questions of three steps"
    if (gain := judged(summary, "rounds")) is None:
        yield Claim(text, OURS, "the paper's decision is binary", "-", NOT_RUN)
    else:
        found = summary["rows"]["three-thoughts"]["differences"]
        ours = (
            f"auto on facts of neighbours {tested(gain)}; over all tasks {points(found['all']['auto'])}. Thoughts "
            f"about neighbours are right in {_right(found, 'neighbours')} in one round"
        )
        verdict = gain_verdict(gain)
        if max(found["neighbours"]["right"].values()) < LEARNT:
            verdict = UNTESTED
            ours += (
                ": neither has learnt these questions, so this says that three rounds are learnt more slowly, not "
                "what they are worth once learnt"
            )
        yield Claim(text, OURS, "the paper's decision is binary", ours, verdict)
