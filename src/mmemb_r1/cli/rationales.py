"""`mmemb-r1 rationales`: the prior, candidates for what the model will think."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = """\
Draw rationales for the inputs of a pairs table (Parquet with the columns pair_id, query and target) from a pool of
workers. Each worker sees one input at a time, never its partner.

The output is a folder. A run that was stopped goes on with the same command, and a worker that was added to the pool
is the only one that draws then. The pool is a YAML file:

  samples: 4                     # rationales per input, unless a worker says otherwise
  workers:
    - name: local                # every worker has a name, a kind, and the keys of its kind
      kind: transformers
      model: Qwen/Qwen3-VL-2B-Instruct
      style: instruct
    - name: server
      kind: openai
      base_url: http://localhost:8000/v1
      model: Qwen/Qwen3-VL-8B-Thinking
      style: thinking
      api_key_env: OPENAI_API_KEY   # the name of an environment variable

The exit status is 1 if more answers failed than --max-failures."""

ABORTED = 1


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", required=True, type=Path, metavar="FILE", help="the pairs table, Parquet")
    parser.add_argument("--pool", required=True, type=Path, metavar="FILE", help="the workers, YAML")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where the rationales go")
    parser.add_argument("--workers", type=names, metavar="A,B", help="only these of the pool; default: all")
    parser.add_argument(
        "--sides", type=names, default=["query", "target"], metavar="A,B", help="default: query,target"
    )
    parser.add_argument("--samples", type=int, metavar="K", help="rationales per input, whatever the pool says")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--shard-size", type=int, default=64, metavar="N", help="inputs per file, lost at most; default: 64"
    )
    parser.add_argument("--max-failures", type=int, metavar="N", help="stop when more answers failed; default: never")
    parser.add_argument(
        "--part", type=part, default=(1, 1), metavar="I/N", help="the I-th of N parts, for N machines; default: 1/1"
    )
    parser.add_argument("--retry-failed", action="store_true", help="ask again for what failed before")


def names(text: str) -> list[str]:
    """A list from the command line.

    >>> names("query, target")
    ['query', 'target']
    """
    return [name.strip() for name in text.split(",") if name.strip()]


def part(text: str) -> tuple[int, int]:
    """
    >>> part("2/3")
    (2, 3)
    """
    first, slash, count = text.partition("/")
    if not (slash and first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; allowed: I/N with I from 1 to N, for example 2/3")
    return int(first), int(count)


def run(args: argparse.Namespace) -> int:
    if not args.pairs.is_file():
        raise ValueError(f"--pairs {args.pairs}: there is no such file")
    if not args.pool.is_file():
        raise ValueError(f"--pool {args.pool}: there is no such file")

    from mmemb_r1.training.prior.pool import load_pool

    workers = load_pool(args.pool, only=args.workers, samples=args.samples)

    import logging
    import sys

    from mmemb_r1.training.prior.draw import draw_rationales
    from mmemb_r1.training.tables import PAIR_COLUMNS, read_pairs

    progress = sys.stderr.isatty()
    if not progress:  # a line per shard instead of the bar
        logging.basicConfig(format="%(message)s")
        logging.getLogger("mmemb_r1.training.prior").setLevel(logging.INFO)
    summary = draw_rationales(
        read_pairs(args.pairs, PAIR_COLUMNS),
        workers,
        args.output,
        sides=args.sides,
        seed=args.seed,
        shard_size=args.shard_size,
        max_failures=args.max_failures,
        part=args.part,
        retry_failed=args.retry_failed,
        progress=progress,
    )
    print(*summary.lines(), sep="\n")
    if summary.aborted:
        return ABORTED
    print(f"the rationales are in {args.output}")
    return 0
