"""`mmemb-r1 train`: the training phases on a pairs table."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmemb_r1.cli._training import add_training_options

HELP = """\
Train a checkpoint. `mmemb-r1 train joint` runs the joint phase on a pairs table (Parquet with the columns query,
target and, optionally, task, query_rationale and target_rationale)."""


def configure(parser: argparse.ArgumentParser) -> None:
    phases = parser.add_subparsers(dest="phase", metavar="PHASE", required=True)
    joint = phases.add_parser("joint", help="thinking and embedding together", description=HELP)
    joint.add_argument(
        "--model", required=True, metavar="DIR", help="the checkpoint to start from: a folder or a Hub id"
    )
    joint.add_argument("--pairs", required=True, type=Path, metavar="FILE", help="the pairs table, Parquet")
    joint.add_argument("--output", required=True, type=Path, metavar="DIR", help="where the trained checkpoint goes")
    add_training_options(joint, "JointConfig")


def run(args: argparse.Namespace) -> int:
    if not args.pairs.is_file():
        raise ValueError(f"--pairs {args.pairs}: there is no such file")

    from mmemb_r1 import MMEmbR1
    from mmemb_r1.cli._training import train_in_folder, training_fields
    from mmemb_r1.training import JointConfig, JointTrainer
    from mmemb_r1.training.tables import read_pairs

    fields = training_fields(args, JointConfig)
    pairs = read_pairs(args.pairs)
    arguments = JointConfig(**fields)
    model = MMEmbR1(args.model, device="cpu" if args.cpu else None)
    trainer = JointTrainer(
        model=model[0].model.train(), args=arguments, train_dataset=pairs, processing_class=model.processor
    )
    train_in_folder(trainer, args, fields)
    MMEmbR1.from_model(trainer.model.eval(), model.processor).save_pretrained(str(args.output / "model"))
    print(f"the trained checkpoint is in {args.output / 'model'}")
    print('its gate was not trained: embed with reasoning="always" or "never", or lower the gate threshold')
    return 0
