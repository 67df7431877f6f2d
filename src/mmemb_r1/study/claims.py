"""The method's claims, one by one: what was published, what the study found, and whether that agrees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

PAPER = "arXiv 2604.06156"
PEER = "users of UME-R1 (arXiv 2511.00405)"
OURS = "ours, not the paper's"
HOLDS, SMALLER, FAILS, UNTESTED = "holds", "holds, but smaller", "does not hold", "cannot be tested here"
OPEN = "not shown"
NOT_RUN = "not run"


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


def points(number: Mapping[str, float], sign: int = 1) -> str:
    """
    A difference in points with its interval; with sign -1 what is lost instead of gained.

    >>> points({"mean": -0.058, "low": -0.09, "high": -0.031}, -1)
    '+5.8 [+3.1, +9.0]'
    """
    mean, *ends = (100 * sign * number[name] + 0.0 for name in ("mean", "low", "high"))  # + 0.0: there is a -0.0
    low, high = sorted(ends)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def loss_verdict(difference: Mapping[str, float], published: float = 0.0) -> str:
    """
    Whether leaving something out costs what was published.

    Args:
        difference: score without it minus score with it, with its interval.
        published: what it was worth, as a share of 1. Default: no figure, only that it is worth something.

    >>> loss_verdict({"mean": -0.10, "low": -0.13, "high": -0.07}, 0.058)
    'holds'
    >>> loss_verdict({"mean": -0.02, "low": -0.03, "high": -0.01}, 0.058)
    'holds, but smaller'
    >>> loss_verdict({"mean": -0.01, "low": -0.03, "high": 0.01})
    'not shown'
    >>> loss_verdict({"mean": 0.1, "low": 0.05, "high": 0.2})
    'does not hold'
    """
    if difference["low"] > 0:
        return FAILS
    if difference["high"] >= 0:
        return OPEN
    return HOLDS if -difference["low"] >= published else SMALLER


def claims_of(summary: Mapping[str, Any]) -> Iterator[Claim]:
    """All claims; those whose row was not run say so."""
    rows = summary["rows"]
    yield Claim(
        "71.2 on MMEB-V2 with a 4B backbone",
        PAPER,
        "71.2, mean of 78 tasks",
        "needs Qwen3-VL-4B and GPUs; the commands are below",
        UNTESTED,
    )
    for name, text, source, published in (
        ("no-selection", "pair-aware selection is worth 5.8 points on the reasoned path", PAPER, 0.058),
        ("absolute", "the counterfactual baseline is worth 5.8 points on the reasoned path", PAPER, 0.058),
        ("no-pair-aware", "taking off what a rationale does for wrong pairs helps", OURS, 0.0),
        ("one-worker", "several different workers are better than one", PAPER, 0.0),
        ("no-rationale-loss", "rationales have to be trained together with the vectors", PAPER, 0.0),
        ("no-mixed-terms", "terms between direct and reasoned vectors help reasoned queries", OURS, 0.0),
    ):
        yield _worth(rows, name, text, source, published)
    yield from _adaptive(summary)
    yield _shortcut(rows)
    yield from _beyond(rows)


def _worth(rows: Mapping[str, Any], name: str, text: str, source: str, published: float) -> Claim:
    figure = f"{100 * published:.1f} points" if published else "no figure known"
    if name not in rows or "differences" not in rows[name]:
        return Claim(text, source, figure, "-", NOT_RUN)
    found = rows[name]["differences"]
    lost = found["multi-hop"]["always"]
    ours = (
        f"without it reasoned queries of several steps lose {points(lost, -1)}, auto over all tasks "
        f"{points(found['all']['auto'], -1)}"
    )
    return Claim(text, source, figure, ours, loss_verdict(lost, published))


def _adaptive(summary: Mapping[str, Any]) -> Iterator[Claim]:
    rows, full = summary["rows"], summary.get("full")
    if full is None:
        yield Claim("a gate is better than thinking never or always", PAPER, "-", "-", NOT_RUN)
        return
    choice = full["choice"]
    gain = choice["gain"]
    yield Claim(
        "deciding per input is better than never or always thinking",
        PAPER,
        "no figure known",
        f"auto minus {choice['better_fixed']}, the better of both: {points(gain)}, thinking on "
        f"{choice['invocation']['mean']:.0%}",
        HOLDS if gain["low"] > 0 else FAILS if gain["high"] < 0 else OPEN,
    )
    over = choice["over_random"]
    yield Claim(
        "what decides is the input, not how often it thinks",
        OURS,
        "-",
        f"auto minus a gate that thinks as often at random: {points(over)}",
        HOLDS if over["low"] > 0 else FAILS if over["high"] < 0 else OPEN,
    )
    if "no-grpo" in rows and "differences" in rows["no-grpo"]:
        found = rows["no-grpo"]["differences"]["all"]["auto"]
        before, after = (rows[name]["levels"]["all"]["invocation"]["mean"] for name in ("no-grpo", "full"))
        yield Claim(
            "GRPO teaches the gate more than supervision on the same pairs did",
            PAPER,
            "no figure known",
            f"auto without GRPO loses {points(found, -1)}; it thinks on {before:.0%} before and {after:.0%} after",
            loss_verdict(found),
        )
    yield _best_ratio(full)
    tokens = choice["tokens"]["mean"] / max(choice["tokens_always"]["mean"], 1e-9)
    yield Claim(
        "2.5 times faster than UME-R1, which always thinks",
        PAPER,
        "2.5x",
        f"UME-R1's weights can't be run here; auto writes {tokens:.0%} of the tokens of always",
        UNTESTED,
    )


def _best_ratio(full: Mapping[str, Any]) -> Claim:
    best, over = full["best"], full["best"]["over_always"]
    ours = (
        f"best at {best['share']:.0%} of the inputs, {points(over)} against thinking on all (the best point of the "
        "curve is chosen on these answers, which flatters it)"
    )
    verdict = FAILS if best["share"] in (0.0, 1.0) else HOLDS if over["low"] > 0 else OPEN
    return Claim("above a best share of inputs that think, accuracy falls", PAPER, "best at 74.3 %", ours, verdict)


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


def _beyond(rows: Mapping[str, Any]) -> Iterator[Claim]:
    text = "a round in which the model joins the workers is better than one in which it does not"
    if {"model-joins", "second-round"} <= rows.keys():
        found = rows["model-joins"]["control"]
        gain = found["all"]["auto"]
        ours = (
            f"auto over all tasks {points(gain)}, reasoned queries of several steps "
            f"{points(found['multi-hop']['always'])}"
        )
        yield Claim(text, OURS, "the paper optimises no joint rounds", ours, _gain_verdict(gain))
    else:
        yield Claim(text, OURS, "the paper optimises no joint rounds", "-", NOT_RUN)
    text = "up to three rounds of reasoning help questions of three steps"
    if "three-thoughts" in rows and "differences" in rows["three-thoughts"]:
        found = rows["three-thoughts"]["differences"]
        gain = found["neighbours"]["auto"]
        ours = f"auto on facts of neighbours {points(gain)}, over all tasks {points(found['all']['auto'])}"
        yield Claim(text, OURS, "the paper's decision is binary", ours, _gain_verdict(gain))
    else:
        yield Claim(text, OURS, "the paper's decision is binary", "-", NOT_RUN)


def _gain_verdict(gain: Mapping[str, float]) -> str:
    return HOLDS if gain["low"] > 0 else FAILS if gain["high"] < 0 else OPEN
