"""
What the decision itself costs: `encode(reasoning="auto")`, where a share p of the inputs thinks, against what that
share of never and always would take, never + p (always - never), in alternation in one run.

    python -m benchmarks.auto_mixture [--model runs/quickstart/model | --random-100m] [--inputs 512] [--batch-size 32]
        [--decode-batch-size 128] [--repeats 5] [--output auto_mixture.json]

Thresholds are quantiles of the gate's probabilities, and p is the share that really thinks. Inputs that the gate
chooses may have longer rationales than others, so the share of rationale tokens stands beside the share of inputs.
There have to be several times as many inputs as think at once: a step over few rows costs nearly as much as one over
many, so the mixture can't be reached where the thinkers of a small p don't fill the decoder.

Prints a table; writes JSON with `--output`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.engine.report import save, show, verdict
from benchmarks.engine.subject import Subject, add_arguments
from benchmarks.engine.timing import alternating
from benchmarks.engine.workload import inputs_of
from mmemb_r1 import MMEmbR1
from mmemb_r1.encoding import DECODED_PER_READ

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST = 1.05  # of what never and always would take


def threshold_of(gate_prob: np.ndarray, share: float) -> float:
    """A threshold from which this share of `gate_prob` `(N,)` thinks: between two of them."""
    ordered = np.sort(gate_prob.astype(np.float64))[::-1]
    count = round(share * len(ordered))
    return float(np.mean([1.0, *ordered, 0.0][count : count + 2]))


def run(
    subject: Subject,
    *,
    inputs: int = 512,
    batch_size: int = 32,
    decode_batch_size: int | None = None,
    max_reasoning_tokens: int = 32,
    repeats: int = 5,
) -> dict[str, Any]:
    """
    Measure never, always, and auto at several shares.

    Args:
        subject: the model.
        inputs: how many are embedded.
        batch_size: rows of a prefill.
        decode_batch_size: rows that think at the same time. Default: as in `encode`.
        max_reasoning_tokens: budget of a rationale.
        repeats: rounds.
    """
    model, values = subject.load(), inputs_of(subject, inputs)
    decoded = decode_batch_size or DECODED_PER_READ * batch_size
    options = {"batch_size": batch_size, "decode_batch_size": decoded, "show_progress_bar": False}
    options["max_reasoning_tokens"] = max_reasoning_tokens
    explained = model.encode(values, reasoning="always", output_value=None, **options)
    gate_prob = np.array([float(row["gate_prob"]) for row in explained])
    tokens = np.array([int(row["num_reasoning_tokens"]) for row in explained])

    def encode(**chosen: Any) -> Callable[[], Any]:
        return lambda: model.encode(values, **chosen, **options)

    thresholds = {f"auto {share:.0%}": threshold_of(gate_prob, share) for share in SHARES}
    rows = {}
    for name, threshold in thresholds.items():  # and a warm-up
        thinks = thinking(model, values, threshold, options)
        rows[name] = {
            "threshold": threshold,
            "share": float(thinks.mean()),
            "share_of_tokens": float(tokens[thinks].sum() / tokens.sum()),
        }
    model.encode(values, reasoning="never", **options)
    calls = {"never": encode(reasoning="never"), "always": encode(reasoning="always")}
    calls |= {name: encode(reasoning="auto", gate_threshold=threshold) for name, threshold in thresholds.items()}
    times = alternating(calls, repeats, subject)
    for name, row in rows.items():
        for what, share in (("ratio", row["share"]), ("ratio_by_tokens", row["share_of_tokens"])):
            rounds = zip(times["never"], times["always"], times[name], strict=True)
            ratios = [auto / (never + share * (always - never)) for never, always, auto in rounds]
            row |= {what: statistics.median(ratios), f"least_{what}": min(ratios)}
        row["seconds"] = statistics.median(times[name])
    return {
        "subject": subject.name,
        "inputs": inputs,
        "batch_size": batch_size,
        "decode_batch_size": decoded,
        "reasoning_tokens": float(tokens.mean()),
        **{f"{name}_seconds": statistics.median(times[name]) for name in ("never", "always")},
        "auto": rows,
    }


def thinking(model: MMEmbR1, values: list[Any], threshold: float, options: dict[str, Any]) -> np.ndarray:
    """Find which inputs think at a threshold: `(N,)` bool."""
    explained = model.encode(values, reasoning="auto", gate_threshold=threshold, output_value=None, **options)
    return np.array([bool(row["reasoned"]) for row in explained])


def show_results(results: dict[str, Any]) -> None:
    fixed = [{"": name, "time": f"{results[f'{name}_seconds']:.2f} s"} for name in ("never", "always")]
    blank = dict.fromkeys(("thinks", "of tokens", "of the mixture", "least", "by tokens"), "-")
    rows = [{**row, **blank} for row in fixed]
    for name, row in results["auto"].items():
        rows.append(
            {
                "": name,
                "time": f"{row['seconds']:.2f} s",
                "thinks": f"{row['share']:.1%}",
                "of tokens": f"{row['share_of_tokens']:.1%}",
                "of the mixture": f"{row['ratio']:.3f}",
                "least": f"{row['least_ratio']:.3f}",
                "by tokens": f"{row['ratio_by_tokens']:.3f}",
            }
        )
    worst = max(row["ratio"] for row in results["auto"].values())
    title = (
        f"{results['inputs']} inputs, {results['reasoning_tokens']:.1f} tokens in a rationale: {results['subject']}"
    )
    show(title, rows, verdict("most of the mixture's time", worst, "<= 1.05", worst <= MOST))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--inputs", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--decode-batch-size", type=int, help="rows that think at once; default: as in encode")
    parser.add_argument("--max-reasoning-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    results = run(
        Subject.of(args),
        inputs=args.inputs,
        batch_size=args.batch_size,
        decode_batch_size=args.decode_batch_size,
        max_reasoning_tokens=args.max_reasoning_tokens,
        repeats=args.repeats,
    )
    show_results(results)
    save(results, args)


if __name__ == "__main__":
    main()
