"""`mmemb-r1 rationales`: draw rationales from a pool of workers (the prior)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.cli._options import (
    PAIRS_TABLE,
    add_row_options,
    add_shard_options,
    check_file,
    check_table,
    listed,
    pairs_options,
    pairs_told,
)
from mmemb_r1.cli._ray import add_ray_options, ray_options

if TYPE_CHECKING:
    from mmemb_r1.training.rationales.summary import Summary

HELP = """\
Draw rationales for the inputs of a pairs table (with the columns query and target and, optionally, pair_id) from a
pool of workers. Each worker sees one input at a time, never the other side of its pair.

The output is a folder. A run that was stopped goes on with the same command, and a worker that was added to the pool
is the only one that draws then. The pool is a YAML file:

  samples: 4                     # rationales per input, unless a worker says otherwise
  workers:
    - name: local                # every worker has a name, a kind, and the keys of its kind
      kind: transformers         # transformers, openai, checkpoint, or a class of your own: module:Class
      model: Qwen/Qwen3-VL-2B-Instruct
      style: instruct
    - name: server
      kind: openai
      base_url: http://localhost:8000/v1
      model: Qwen/Qwen3-VL-8B-Thinking
      style: thinking
      api_key_env: OPENAI_API_KEY   # the name of an environment variable

The exit status is 1 if more rationales failed than --max-failures."""

ABORTED = 1


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", required=True, type=Path, metavar="FILE", help=PAIRS_TABLE)
    add_row_options(parser)
    parser.add_argument("--pool", required=True, type=Path, metavar="FILE", help="the workers, YAML")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where the rationales go")
    parser.add_argument("--workers", type=listed, metavar="A,B", help="only these of the pool; default: all")
    parser.add_argument(
        "--sides", type=listed, default=["query", "target"], metavar="A,B", help="default: query,target"
    )
    parser.add_argument("--samples", type=int, metavar="K", help="rationales per input, whatever the pool says")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--max-failures", type=int, metavar="N", help="stop when more failed; default: never")
    add_shard_options(parser)
    parser.add_argument("--retry-failed", action="store_true", help="draw again what failed before")
    add_ray_options(parser, "processes, each with the pool and its part of the shards")


def run(args: argparse.Namespace) -> int:
    check_table("--pairs", args.pairs)
    check_file("--pool", args.pool)
    on_ray = ray_options(args)
    if on_ray is not None and args.part != (1, 1):
        raise ValueError("--part is for machines without Ray; leave it out with --ray")
    options = {
        "sides": args.sides,
        "seed": args.seed,
        "shard_size": args.shard_size,
        "max_failures": args.max_failures,
        "retry_failed": args.retry_failed,
    }
    summary = _drawn(args, options) if on_ray is None else _drawn_on_ray(args, options, on_ray)
    print(*summary.lines(), sep="\n")
    if summary.aborted:
        return ABORTED
    print(f"the rationales are in {args.output}; keep those that help:")
    print(f"mmemb-r1 select {pairs_told(args)} --rationales {args.output} --evaluator MODEL --output DIR")
    return 0


def _drawn(args: argparse.Namespace, options: dict[str, Any]) -> Summary:
    from mmemb_r1.training.rationales.pool import load_pool

    workers = load_pool(args.pool, only=args.workers, samples=args.samples)

    from mmemb_r1.training.rationales.draw import draw_rationales
    from mmemb_r1.training.tables import PAIR_COLUMNS, read_pairs

    pairs = read_pairs(args.pairs, PAIR_COLUMNS, **pairs_options(args))
    return draw_rationales(pairs, workers, args.output, part=args.part, **options)


def _drawn_on_ray(args: argparse.Namespace, options: dict[str, Any], on_ray: dict[str, Any]) -> Summary:
    from mmemb_r1.ray import draw_rationales

    return draw_rationales(
        args.pairs,
        args.pool,
        args.output,
        read=pairs_options(args),
        only=args.workers,
        samples=args.samples,
        **options,
        **on_ray,
    )
