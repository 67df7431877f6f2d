"""The rows of the study: what each changes of the full method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FULL, BEFORE_GRPO, RANDOM_GATE = "full", "no-grpo", "random-gate"
POOL, ONE_WORKER, POOL_AND_MODEL = "pool", "one worker", "pool and model"  # whose rationales the selection starts from
# The behaviour of all wrong rationales of the single worker.
ERRORS = "confused"
# Gains as in the paper: in probability, and without the wrong-pair correction, which is ours.
PUBLISHED: Mapping[str, Any] = {"space": "probability", "wrong_pair_correction": False}


@dataclass(frozen=True)
class Row:
    """
    One way to train.

    Args:
        name: on the command line, and of its folder.
        number: on the page.
        title: what it is, in a few words.
        selection: fields of `SelectionOptions` instead of those of the full method.
        workers: `POOL`, four workers with two rationales each for every input, one worker of which is right;
            `ONE_WORKER`, one worker with as many rationales for every input, as many of them right, and whose errors
            are all of the kind `ERRORS`; `POOL_AND_MODEL`, a fifth worker is the model of the full method.
        joint: fields of `JointConfig` instead of those of the full method.
        rounds: rationales of one chain.
        start: the row whose model it starts from. Default: the warm-up.
        of: the row whose models it evaluates, for rows that train nothing.
        against: the row that it is compared with.
        control: another one, which differs from it in one thing only.
    """

    name: str
    number: str
    title: str
    selection: Mapping[str, Any] = field(default_factory=dict)
    workers: str = POOL
    joint: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 1
    start: str | None = None
    of: str | None = None
    against: str = FULL
    control: str | None = None

    @property
    def table(self) -> str:
        """Name of the table of selected rationales; rows with the same name train on the same one."""
        ways = [f"{name}-{value}" for name, value in self.selection.items()]
        return "-".join([self.workers, *ways]).replace(" ", "-").replace("_", "-").lower()


ROWS = (
    Row(FULL, "1", "the full method"),
    Row("no-selection", "2", "no selection: every rationale of the workers", {"selection": "none"}),
    Row("absolute", "3", "no counterfactual baseline, with the wrong-pair correction", {"selection": "absolute"}),
    Row(
        "absolute-probability",
        "3, as published",
        "no counterfactual baseline, in probability, without the wrong-pair correction",
        {"selection": "absolute", **PUBLISHED},
        control="probability",
    ),
    Row("probability", "3, control", "with the counterfactual baseline, else the same", PUBLISHED),
    Row("no-correction", "4", "no wrong-pair correction", {"wrong_pair_correction": False}),
    Row("one-worker", "5", "one worker, as often right, with errors of one kind", workers=ONE_WORKER),
    Row("no-rationale-loss", "6", "no loss on rationale tokens in the joint phase", joint={"rationale_weight": 0.0}),
    Row(
        "no-mixed-terms",
        "7",
        "no contrastive term between direct and reasoned vectors",
        joint={"direct_reasoned_weight": 0.0, "reasoned_direct_weight": 0.0},
    ),
    Row(BEFORE_GRPO, "8", "no GRPO: the gate as supervision fitted it", of=FULL),
    Row(RANDOM_GATE, "9", "a random gate that thinks as often", of=FULL),
    Row(
        "model-joins",
        "10",
        "one more round, the model among the workers",
        workers=POOL_AND_MODEL,
        start=FULL,
        control="second-round",
    ),
    Row("second-round", "10, control", "one more round, the same workers", start=FULL),
    Row("three-rounds", "11", "up to three rounds of reasoning", rounds=3),
)
BY_NAME = {row.name: row for row in ROWS}
# Those that the full form gives more seeds to; the last costs nothing.
MORE_SEEDS = (FULL, "no-selection", "absolute", "absolute-probability", "probability", BEFORE_GRPO, RANDOM_GATE)


def with_needed(names: Sequence[str]) -> list[Row]:
    """
    The rows of these names and those that they start from or are compared with, in the order of `ROWS`.

    Raises:
        ValueError: if there is no such row.

    >>> [row.name for row in with_needed(["one-worker"])]
    ['full', 'one-worker']
    """
    if unknown := [name for name in names if name not in BY_NAME]:
        raise ValueError(f"there is no row {unknown[0]!r}; allowed: {', '.join(BY_NAME)}")
    wanted = set(names)
    for name in names:
        row = BY_NAME[name]
        wanted |= {other for other in (row.start, row.of, row.against, row.control) if other is not None}
    return [row for row in ROWS if row.name in wanted]
