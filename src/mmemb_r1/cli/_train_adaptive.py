"""`mmemb-r1 train adaptive`."""

from __future__ import annotations

import argparse
from hashlib import sha256
from pathlib import Path

from mmemb_r1.cli._training import add_phase_options

HELP = """\
Teach a checkpoint that thinks well when to think at all. `mmemb-r1 train adaptive` runs GRPO on a pairs table (Parquet
with the columns pair_id, query, target and, optionally, task and negatives) whose pairs the joint phase has not seen.

The YAML of --config maps fields of AdaptiveGRPOConfig to values, and may hold two mappings beside them, lora and
model, as for `mmemb-r1 train joint`.

On several GPUs: accelerate launch -m mmemb_r1.cli train adaptive ...
A run that was stopped goes on from its last checkpoint with the same command."""
SECTIONS = ("lora", "model")


def configure(parser: argparse.ArgumentParser) -> None:
    add_phase_options(parser, "AdaptiveGRPOConfig", "a checkpoint after the joint phase")
    parser.add_argument(
        "--joint-pairs",
        type=Path,
        metavar="FILE",
        help="what the joint phase was trained on: its targets are negatives too, and pairs in both tables are told",
    )


def run(args: argparse.Namespace) -> int:
    from mmemb_r1.cli._training import read_recipe, save_trained, train_in_folder, training_fields
    from mmemb_r1.cli.train import load_module, peft_config
    from mmemb_r1.training import AdaptiveGRPOConfig, AdaptiveGRPOTrainer
    from mmemb_r1.training.tables import PAIR_COLUMNS, read_pairs

    fields, sections = read_recipe(args.config, SECTIONS)
    fields = training_fields(args, AdaptiveGRPOConfig, fields)
    arguments = AdaptiveGRPOConfig(**fields)
    pairs = read_pairs(args.pairs, PAIR_COLUMNS)
    joint = read_pairs(args.joint_pairs) if args.joint_pairs else None
    module = load_module(args, sections, arguments.device)
    model = module.model.train()
    if (adapters := peft_config(args, sections, model)) is not None:
        from mmemb_r1.training.adapters import with_adapters

        model = with_adapters(model, adapters, seed=arguments.seed)
    trainer = AdaptiveGRPOTrainer(
        model=model,
        args=arguments,
        train_dataset=pairs,
        processing_class=module.processor,
        joint_pairs=joint,
    )
    digest = {"joint_pairs": sha256(args.joint_pairs.read_bytes()).hexdigest()} if args.joint_pairs else {}
    train_in_folder(trainer, args, fields, **digest, **sections)
    save_trained(trainer, args.model, args.output)
    if trainer.is_world_process_zero():
        print(f"the trained checkpoint is in {args.output / 'model'}")
        print("to think on a given share of your inputs: mmemb-r1 calibrate")
    return 0
