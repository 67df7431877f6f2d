"""
What a corpus takes: hours, money and room on the disk, computed from a rate that was measured.

    python -m benchmarks.corpus_cost --rate 310 [--price 1.0] [--workers 1 8 64] [--dim 2048] [--efficiency 1.0]
    python -m benchmarks.corpus_cost --measured ray_throughput.json

The rate is of one worker, in inputs per second, from a run over inputs of yours: `mmemb-r1 encode` on some thousand of
them, or `ray_throughput` with `--model`. The price is of one worker for an hour, in any currency. `--efficiency` is
what a worker does beside others, of what it does alone: `--measured` takes both from a file of `ray_throughput`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mmemb_r1.formatting import significant, table

ROWS = (1_000, 1_000_000, 10_000_000, 100_000_000)


def hours(rows: int, rate: float, workers: int, efficiency: float) -> float:
    """
    Tell how long workers take.

    >>> hours(1_000_000, rate=100, workers=1, efficiency=1.0)
    2.7777777777777777
    """
    return rows / (rate * workers * (efficiency if workers > 1 else 1)) / 3600


def cost_per_million(rate: float, price: float, workers: int, efficiency: float) -> float:
    """
    Tell what a million inputs cost, which is the same for any number of workers but for their efficiency.

    >>> cost_per_million(rate=100, price=3.6, workers=4, efficiency=0.5)
    20.0
    """
    return workers * price * hours(1_000_000, rate, workers, efficiency)


def gigabytes(rows: int, dim: int, bytes_per_value: float = 4) -> float:
    """
    Tell how large the vectors are, without ids and rationales.

    >>> gigabytes(1_000_000, dim=256)
    1.024
    """
    return rows * dim * bytes_per_value / 1e9


def read_measured(path: Path) -> tuple[float, float]:
    """Read the rate of one process, and the efficiency of a worker, from a file of `ray_throughput`."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    one, several = (row["rate"] for row in facts["results"] if "rate" in row)
    return one, several / one / facts["options"]["workers"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--rate", type=float)
    given.add_argument("--measured", type=Path)
    parser.add_argument("--efficiency", type=float, default=1.0)
    parser.add_argument("--price", type=float, default=1.0)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--dim", type=int, default=2048)
    args = parser.parse_args()
    rate, efficiency = (args.rate, args.efficiency) if args.measured is None else read_measured(args.measured)
    print(f"{significant(rate)} inputs/s of one worker, {significant(efficiency)} of that beside others")
    for workers in args.workers:
        cost = cost_per_million(rate, args.price, workers, efficiency)
        print(f"{workers} workers: {significant(cost)} per million, at {args.price} per worker and hour")
    header = ["inputs", *(f"hours, {workers} workers" for workers in args.workers), f"GB, {args.dim} x float32"]
    rows = [
        [
            f"{count:,}",
            *(significant(hours(count, rate, workers, efficiency)) for workers in args.workers),
            significant(gigabytes(count, args.dim)),
        ]
        for count in ROWS
    ]
    print(table(header, rows))


if __name__ == "__main__":
    main()
