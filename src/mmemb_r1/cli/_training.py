"""Options that every training command has, the config fields that they make, and saving what was trained."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmemb_r1.training.joint.trainer import JointTrainer


LENGTH_OF_RUN = ("max_steps", "num_train_epochs")  # a longer run may go on from a shorter one


def add_training_options(parser: argparse.ArgumentParser, config: str) -> None:
    """Add `--config`, `--max-steps` and `--cpu`; `config` names the class of the config."""
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"YAML: fields of {config} and their values")
    parser.add_argument("--max-steps", type=int, metavar="N", help="optimiser steps; default: the config's")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU in float32")


def add_phase_options(parser: argparse.ArgumentParser, config: str, model: str) -> None:
    """Add what every training phase has: `--model`, `--pairs`, `--output`, and those of `add_training_options`.

    Args:
        parser: of the phase.
        config: the class of its config.
        model: what it starts from, for the help.
    """
    parser.add_argument("--model", required=True, metavar="DIR", help=f"{model}: a folder or a Hub id")
    parser.add_argument("--pairs", required=True, type=Path, metavar="FILE", help="the pairs table, Parquet")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where the trained checkpoint goes")
    add_training_options(parser, config)


def read_recipe(path: Path | None, sections: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """
    What a YAML file says.

    Args:
        path: the file. Default: nothing is said.
        sections: keys under which there is no field of the trainer's config, but a mapping of its own.

    Returns:
        The fields, and those sections that are there.

    Raises:
        ValueError: if the file is missing, no YAML or no mapping, or a section is none.
    """
    import yaml

    if path is None:
        return {}, {}
    if not path.is_file():
        raise ValueError(f"--config {path}: there is no such file")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is no YAML: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"--config {path} holds a {type(fields).__name__}; it has to map fields to values")
    found = {name: fields.pop(name) for name in sections if name in fields}
    for name, section in found.items():
        if not isinstance(section, dict):
            raise ValueError(
                f"--config {path}: {name} holds a {type(section).__name__}; it has to map options to values, "
                "{} for the defaults"
            )
    return fields, found


def training_fields(args: argparse.Namespace, config: type, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """
    The fields of a trainer's config: those of the YAML file, those of the command line, checkpoints below `--output`.

    Args:
        args: the options of `add_training_options`, and `output`.
        config: the class of the config.
        fields: what `read_recipe` found. Default: all that is in `args.config`.

    Raises:
        ValueError: if the file is no mapping, or holds a field that the config lacks.
    """
    fields = read_recipe(args.config)[0] if fields is None else fields
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    if unknown := sorted(set(fields) - set(defaults)):
        raise ValueError(
            f"--config {args.config}: {config.__name__} has no field {unknown[0]!r}; see its documentation"
        )
    fields = {name: as_number(name, value, defaults[name]) for name, value in fields.items()}
    fields = {"report_to": [], **fields, "output_dir": str(args.output / "checkpoints")}
    if args.max_steps is not None:
        fields["max_steps"] = args.max_steps
    if args.cpu:
        fields |= {"use_cpu": True, "bf16": False, "activation_checkpointing": False}
    return fields


def train_in_folder(trainer: Any, args: argparse.Namespace, fields: Mapping[str, Any], **facts: Any) -> None:
    """
    Train, from the last complete checkpoint below `--output` if there is one.

    The last of the checks is here: settings that were refused must not keep the folder from those that are right.

    Args:
        trainer: ready to train.
        args: its `model`, `pairs` and `output`.
        fields: of the trainer's config.
        facts: what else makes this run another one.

    Raises:
        ValueError: if the folder was begun with another model, table or other settings.
    """
    from mmemb_r1.runs import record_run
    from mmemb_r1.training.base_trainer import last_checkpoint

    record_run(
        args.output / "run.json",
        {
            "model": args.model,
            "pairs": sha256(args.pairs.read_bytes()).hexdigest(),
            "fields": {name: value for name, value in fields.items() if name not in LENGTH_OF_RUN},
            **facts,
        },
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output / "checkpoints"))


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


def save_trained(trainer: JointTrainer, checkpoint: str, output: Path) -> None:
    """
    Save a trained model in `output/model`, complete and with its card, and adapters, if it has any, in
    `output/adapter` as well.

    All processes of a run have to call it; the main one saves. Sharded weights are gathered. The model is put together
    anew from the checkpoint that training began with, and is saved in that one's dtype: adapters are merged into its
    weights as they are stored, also where training saw them quantised.

    Args:
        trainer: after training.
        checkpoint: what was trained on: a folder or a Hub id.
        output: the folder.
    """
    from accelerate.utils import is_peft_model

    from mmemb_r1 import MMEmbR1
    from mmemb_r1.model_card import write_model_card
    from mmemb_r1.training.adapters import load_adapters, merged

    state = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.is_world_process_zero():
        return
    trained = trainer.accelerator.unwrap_model(trainer.model)
    folder = output / "model"
    model = MMEmbR1(checkpoint, device="cpu")
    if is_peft_model(trained):
        trained.save_pretrained(str(output / "adapter"), state_dict=state)
        model[0].model = merged(load_adapters(model[0].model, output / "adapter"))
    else:
        model[0].model.load_state_dict(state)
    model.save_pretrained(str(folder), create_model_card=False)
    write_model_card(folder, training=trainer.facts | {"steps": trainer.state.global_step})
