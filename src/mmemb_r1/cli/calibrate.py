"""`mmemb-r1 calibrate`: set the gate's threshold for a wanted share of inputs that think, or for a budget."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mmemb_r1.cli._options import (
    PAIRS_TABLE,
    add_encoding_options,
    add_row_options,
    add_thinker_options,
    check_table,
    pairs_options,
    use_thinker,
)

HELP = """\
Set the gate's threshold of a checkpoint so that, on inputs like those given, thinking costs what is wanted: a share of
the inputs (--target-ratio) or a number of rationale tokens per input (--target-tokens). No labels are needed.

Inputs are lines as for `encode` (--input), or the queries of a pairs table (--pairs). The threshold is saved in the
checkpoint's config.json; nothing else is changed."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="the checkpoint, a folder")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", metavar="FILE", help="JSON lines, or - for standard input")
    source.add_argument("--pairs", type=Path, metavar="FILE", help=f"{PAIRS_TABLE}: its queries are taken")
    add_row_options(parser)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--target-ratio", type=float, metavar="R", help="share of inputs that think, 0 to 1")
    target.add_argument("--target-tokens", type=float, metavar="N", help="rationale tokens per input, on average")
    parser.add_argument("--dry-run", action="store_true", help="tell the threshold and save nothing")
    add_thinker_options(parser)
    add_encoding_options(parser, batch_size=32)


def run(args: argparse.Namespace) -> int:
    path = args.model / "config.json"
    if not path.is_file():
        raise ValueError(f"--model {args.model}: there is no config.json in it; pull a checkpoint of the Hub first")
    if args.target_ratio is not None and not 0 <= args.target_ratio <= 1:
        raise ValueError(f"--target-ratio {args.target_ratio}; allowed: 0 to 1")
    names, inputs = _inputs(args)

    import numpy as np

    from mmemb_r1 import MMEmbR1
    from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
    from mmemb_r1.runs import replaced_file
    from mmemb_r1.training.gate import calibrated_threshold

    model = MMEmbR1(str(args.model), device=args.device)
    use_thinker(model, args)
    by_tokens = args.target_tokens is not None
    if by_tokens and model.thinker is None and model[0].model.config.max_reasoning_rounds > 1:
        raise ValueError(
            f"--target-tokens: {args.model} may think several times, and how much it spends is decided after each; "
            "use --target-ratio"
        )
    try:
        rows: Any = model.explain(
            inputs,
            reasoning="always" if by_tokens else "never",
            second_look=False,  # which changes neither gate nor tokens
            batch_size=args.batch_size,
            show_progress_bar=True,
        )
    except InputError as error:
        raise ValueError(f"{names[error.index]} can't be embedded: {error.reason}") from error
    probs = np.array([float(row["gate_prob"]) for row in rows])
    tokens = np.array([int(row["num_reasoning_tokens"]) for row in rows]) if by_tokens else None
    target = args.target_tokens if by_tokens else args.target_ratio
    threshold = calibrated_threshold(probs, target, tokens)
    thinks = probs >= threshold
    print(f"gate_threshold {threshold:.6g}: {thinks.mean():.1%} of {len(rows)} inputs think")
    if tokens is not None:
        print(f"{np.where(thinks, tokens, 0).mean():.2f} rationale tokens per input")
    if args.dry_run:
        print("nothing was saved; to save it, leave --dry-run out")
        return 0
    config = json.loads(path.read_text(encoding="utf-8")) | {"gate_threshold": threshold}
    with replaced_file(path) as temporary:
        temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(f"saved in {path}; next, measure it: mmemb-r1 evaluate --model {args.model}")
    return 0


def _inputs(args: argparse.Namespace) -> tuple[list[str], list[Any]]:
    """Read the inputs, and what each is called in messages."""
    if args.pairs is None:
        from mmemb_r1.cli.encode import read_inputs

        if args.tasks or args.per_task or args.columns:
            raise ValueError("--columns, --tasks and --per-task are for --pairs; leave them out")
        lines, inputs = read_inputs(args.input, args.base)
        return [f"line {line}" for line in lines], inputs
    check_table("--pairs", args.pairs)
    from mmemb_r1.content import inputs_of
    from mmemb_r1.training.tables import read_pairs

    pairs = read_pairs(args.pairs, ("pair_id", "query"), **pairs_options(args))
    return [f"the query of pair {pair_id!r}" for pair_id in pairs["pair_id"]], inputs_of(pairs["query"])
