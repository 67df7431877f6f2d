"""
Compute how long the steps of docs/from-a-public-model.md take, and write it into that page.

    python -m experiments.recipes.durations [--write]

Nothing is measured: the hours follow from counts of tokens and from the constants below, which are assumptions.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from experiments.recipes.sizes import SIZES
from mmemb_r1.formatting import table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "from-a-public-model.md"
BEGIN = "<!-- how long: python -m experiments.recipes.durations --write -->"
END = "<!-- end of how long -->"
SPEED = 0.4 * 989e12  # operations a second: 40 % of what an H100 states for dense bfloat16
DECODING_STEP = 0.03  # seconds for a token of each row of a batch, which is launching kernels, not arithmetic
PICTURE, TEXT, TEMPLATE = 300, 30, 20  # tokens: 640 x 480 pixels, a question or an answer, what is around it
RATIONALE, BUDGET = 400, 512  # tokens: UME-R1's in the mean, and the page's limit
PAIRS, POLICY_PAIRS = 40_000, 10_450
QUERY, TARGET = PICTURE + TEXT + TEMPLATE, TEXT + TEMPLATE
WRONG = 4  # pairs on which a rationale is tried
JUDGED = 256 + 2 * TEXT + 80  # tokens of a pair in the evaluator's prompt, its picture limited


@dataclass(frozen=True)
class Work:
    """
    What a step does.

    Attributes:
        size: of the model, one of `SIZES`.
        tokens: that are passed forward, each pass counted, and backward as much.
        decoded: steps of decoding, one after another.
        shared: whether eight GPUs share it.
    """

    size: str
    tokens: float
    decoded: float = 0
    shared: bool = True

    def hours(self, gpus: int = 1) -> float:
        """
        Compute the hours it takes: two operations for each parameter and token, and the steps of decoding.

        >>> round(Work("2B", 1e9).hours(), 2), round(Work("2B", 0, decoded=120_000).hours(8), 3)
        (2.99, 0.125)
        """
        parameters = SIZES[self.size].parameters or 0
        seconds = 2 * parameters * self.tokens / SPEED + self.decoded * DECODING_STEP
        return seconds / 3600 / (gpus if self.shared else 1)


def select_tokens(pairs: int) -> float:
    """Count what the evaluator reads: each pair and its wrong ones, of both sides without and with a rationale."""
    without, reasoned = 1 + 2 * WRONG, 2 * (1 + WRONG)
    return pairs * (without * JUDGED + reasoned * (JUDGED + RATIONALE))


def joint_tokens(pairs: int) -> float:
    """Count four passes (for the cache of gradients, forward, again for activations, backward) and the anchor's."""
    return pairs * (4 * (QUERY + TARGET + 2 * RATIONALE) + QUERY + TARGET)


def works() -> dict[str, Work]:
    """List the steps: name -> its work."""
    groups = POLICY_PAIRS / 8  # 32 rollouts are 8 queries, of 4 rollouts each
    gate = 2 * QUERY + RATIONALE + TARGET
    rollouts = 3 * (4 * QUERY + 3 * RATIONALE) + QUERY
    return {
        "4, select, 40,000 pairs": Work("4B", select_tokens(PAIRS)),
        "4, select, all 1.46 million": Work("4B", select_tokens(1_460_000)),
        "5, joint, 40,000 pairs": Work("2B", joint_tokens(PAIRS)),
        "6, gate": Work("2B", POLICY_PAIRS * gate, POLICY_PAIRS / 32 * BUDGET, shared=False),
        "7, GRPO": Work("2B", POLICY_PAIRS * (rollouts + TARGET), groups * BUDGET),
    }


def written(page: str) -> str:
    """Put the table into the text of a page, between its marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} has no {BEGIN} and {END} for the table to stand between.")
    return f"{before}{BEGIN}\n\n{hours_table()}\n\n{END}{after}"


def hours_table() -> str:
    """Write the hours of each step on one GPU and on eight."""
    rows = [
        [name, f"{work.tokens / 1e6:,.0f}", f"{work.decoded:,.0f}", *(f"{work.hours(gpus):.1f}" for gpus in (1, 8))]
        for name, work in works().items()
    ]
    return table(["step", "million tokens", "tokens written one after another", "hours, 1 GPU", "8 GPUs"], rows)


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into the page")
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(hours_table())


if __name__ == "__main__":
    main()
