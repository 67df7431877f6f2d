"""`mmemb-r1 train`: the training phases on a pairs table."""

from __future__ import annotations

import argparse
from hashlib import sha256
from pathlib import Path
from typing import Any

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
    joint.add_argument("--config", type=Path, metavar="FILE", help="YAML: fields of JointConfig and their values")
    joint.add_argument("--max-steps", type=int, metavar="N", help="optimiser steps; default: the config's")
    joint.add_argument("--cpu", action="store_true", help="train on the CPU in float32")


def run(args: argparse.Namespace) -> int:
    import yaml

    if not args.pairs.is_file():
        raise ValueError(f"--pairs {args.pairs}: there is no such file")
    fields = yaml.safe_load(args.config.read_text(encoding="utf-8")) if args.config else {}
    if not isinstance(fields, dict):
        raise ValueError(f"--config {args.config} holds a {type(fields).__name__}; it has to map fields to values")

    import dataclasses

    from mmemb_r1 import MMEmbR1
    from mmemb_r1.training import JointConfig
    from mmemb_r1.training.tables import read_pairs

    defaults = {field.name: field.default for field in dataclasses.fields(JointConfig)}
    if unknown := sorted(set(fields) - set(defaults)):
        raise ValueError(f"--config {args.config}: JointConfig has no field {unknown[0]!r}; see its documentation")
    fields = {name: as_number(name, value, defaults[name]) for name, value in fields.items()}
    fields = {"report_to": [], **fields, "output_dir": str(args.output / "checkpoints")}
    if args.max_steps is not None:
        fields["max_steps"] = args.max_steps
    if args.cpu:
        fields |= {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}

    from transformers.trainer_utils import get_last_checkpoint

    from mmemb_r1._files import claim
    from mmemb_r1.training import JointTrainer

    pairs = read_pairs(args.pairs)
    arguments = JointConfig(**fields)
    model = MMEmbR1(args.model, device="cpu" if args.cpu else None)
    trainer = JointTrainer(
        model=model[0].model.train(), args=arguments, train_dataset=pairs, processing_class=model.processor
    )
    length_of_run = ("max_steps", "num_train_epochs")  # a longer run may go on from a shorter one
    # last of the checks: settings that were refused must not keep the folder from those that are right
    claim(
        args.output / "run.json",
        {
            "model": args.model,
            "pairs": sha256(args.pairs.read_bytes()).hexdigest(),
            "fields": {name: value for name, value in fields.items() if name not in length_of_run},
        },
    )
    checkpoints = args.output / "checkpoints"
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)) if checkpoints.exists() else None)
    MMEmbR1.from_model(trainer.model.eval(), model.processor).save_pretrained(str(args.output / "model"))
    print(f"the trained checkpoint is in {args.output / 'model'}")
    print('its gate was not trained: embed with reasoning="always" or "never", or lower the gate threshold')
    return 0


def as_number(name: str, value: Any, default: Any) -> Any:
    """A number that YAML took for text (it reads 5e-4 as a string), where the field is a number.

    >>> as_number("learning_rate", "5e-4", 5e-5)
    0.0005
    >>> as_number("lr_scheduler_type", "cosine", "linear")
    'cosine'
    """
    if not isinstance(value, str) or not isinstance(default, float):
        return value
    try:
        return float(value)
    except ValueError as error:
        raise ValueError(f"{name}: {value!r} is no number") from error
