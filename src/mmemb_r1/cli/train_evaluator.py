"""`mmemb-r1 train-evaluator`: a model that judges whether a query and a target match."""

from __future__ import annotations

import argparse
from hashlib import sha256
from pathlib import Path

from mmemb_r1.cli._options import PAIRS_TABLE, add_base_option, add_columns_option, check_table, pairs_told
from mmemb_r1.cli._training import FIELD, add_files, add_training_options, run_of

HELP = """\
Train an evaluator for `mmemb-r1 select`, where no strong chat model is at hand. It learns to answer yes or no to "does
this target match this query?" on the pairs of a table (with the columns query and target, and optionally
pair_id, task, query_rationale and target_rationale), without a rationale, with a right one and with a wrong one."""


def configure(parser: argparse.ArgumentParser) -> None:
    start = "the model to start from, a folder or a Hub id: a vision-language model, or an mmemb-r1 checkpoint"
    parser.add_argument("--model", required=True, metavar="DIR", help=start)
    add_files(parser, {"--pairs": PAIRS_TABLE}, required=True)
    add_files(parser, {"--eval-pairs": "pairs to measure on, that were not learnt from"})
    trusted = "what `mmemb-r1 rationales` wrote, from workers to be trusted; default: the columns of the pairs"
    parser.add_argument("--rationales", type=Path, metavar="DIR", help=trusted)
    add_columns_option(parser)
    add_base_option(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where the evaluator goes")
    add_training_options(parser, "EvaluatorConfig")
    parser.add_argument(
        "--max-steps",
        dest=f"{FIELD}max_steps",
        type=int,
        default=argparse.SUPPRESS,
        metavar="N",
        help="optimiser steps; default: the config's",
    )


def run(args: argparse.Namespace) -> int:
    check_table("--pairs", args.pairs)
    check_table("--eval-pairs", args.eval_pairs)

    from mmemb_r1.runs import explained_writing
    from mmemb_r1.training.rationales.table import read_rationales
    from mmemb_r1.training.run import train_in_folder
    from mmemb_r1.training.selection.evaluator_trainer import (
        EvaluatorRun,
        EvaluatorTrainer,
        match_examples,
        save_evaluator,
    )
    from mmemb_r1.training.tables import PAIR_COLUMNS
    from mmemb_r1.training.vlm import load_vlm, weights_fingerprint

    training = run_of(args, EvaluatorRun)
    arguments = training.config()
    # tables first: what is wrong with them should not wait for a model, let alone for the end of its training
    rationales = read_rationales(args.rationales) if args.rationales else None
    examples = match_examples(training.read_pairs(PAIR_COLUMNS), arguments, rationales=rationales)
    eval_pairs = training.read_other_pairs(args.eval_pairs, PAIR_COLUMNS) if args.eval_pairs else None
    # small steps vanish in bfloat16 weights; on a GPU the trainer computes in bfloat16 all the same
    vlm, processor = load_vlm(args.model, device="cpu" if args.cpu else None, dtype="float32")
    trainer = EvaluatorTrainer(model=vlm.train(), args=arguments, train_dataset=examples, processing_class=processor)
    digest = sha256(repr(rationales["text"][:]).encode()).hexdigest() if rationales else None
    train_in_folder(trainer, training, rationales=digest, weights=weights_fingerprint(vlm))
    measured = trainer.measure(eval_pairs) if eval_pairs else {}
    with explained_writing(args.output):
        save_evaluator(trainer, args.output / "model", measured)
    for name, value in measured.items():
        print(f"{name:28}{value:8.3f}" if isinstance(value, float) else f"{name:28}{value:8,}")
    model = args.output / "model"
    print(f"the evaluator is in {model}; select with it:")
    print(f"mmemb-r1 select {pairs_told(args)} --rationales DIR --evaluator {model} --output DIR")
    return 0
