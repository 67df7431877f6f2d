"""Share between the training commands: options, the fields of a config as flags, and the run that they describe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mmemb_r1.cli._options import PAIRS_TABLE, CommandParser, add_row_options, check_file

if TYPE_CHECKING:
    from mmemb_r1.training.run import TrainingRun

    Run = TypeVar("Run", bound=TrainingRun)

FIELD = "field:"  # before a config's field in the parsed arguments: some have the names of other options
SET_BY_OUTPUT = "output_dir"


class PhaseParser(CommandParser):
    """
    Parse the options of a training phase, and every field of its config (an import path), if it has one, as a flag.

    The fields are added when this phase is parsed, not before: to import a config takes seconds.
    """

    def __init__(self, *args: Any, config: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config = config

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as `argparse` does; abbreviated options are not taken, for a config has many fields."""
        if self.config is None:
            return super().parse_known_args(args, namespace)
        usage = self.format_usage().removeprefix("usage: ").strip().replace("%", "%%")
        whole = CommandParser(
            prog=self.prog,
            usage=f"{usage} [--SETTING VALUE ...]",
            description=self.description,
            formatter_class=self.formatter_class,
            parents=[self, _field_flags(self.config)],
            add_help=False,
            allow_abbrev=False,
        )
        return whole.parse_known_args(args, namespace)


def _field_flags(config: str) -> argparse.ArgumentParser:
    """Make flags of the fields of a config that leave nothing where they are not given."""
    from trl import TrlParser

    from mmemb_r1._lazy import import_object

    config_class = import_object(config)
    parser = TrlParser([config_class], add_help=False)
    parser._actions.sort(key=lambda action: action.dest not in config_class.__annotations__)  # the phase's own first
    for action in parser._actions:
        if action.default not in (None, "", [], argparse.SUPPRESS) and action.help and action.nargs != 0:
            action.help += f" Default: {action.default}".replace("%", "%%")
        if action.dest == SET_BY_OUTPUT:
            action.help = argparse.SUPPRESS
        action.metavar = action.metavar or ("VALUE" if action.choices is None else None)
        action.default, action.dest = argparse.SUPPRESS, FIELD + action.dest
    return parser


def add_training_options(parser: argparse.ArgumentParser, config: str, cpu: bool = True) -> None:
    """Add `--config` and, with `cpu`, `--cpu` and `--accept-changes`; `config` names the class of the config."""
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"YAML: fields of {config} and their values")
    if cpu:
        parser.add_argument("--cpu", action="store_true", help="train on the CPU in float32")
        parser.add_argument(
            "--accept-changes", action="store_true", help="go on in --output though its settings or data were others"
        )


def add_files(parser: argparse.ArgumentParser, helps: dict[str, str], required: bool = False) -> None:
    """Add options that name a file: option -> help."""
    for option, text in helps.items():
        parser.add_argument(option, required=required, type=Path, metavar="FILE", help=text)


def add_phase_options(parser: argparse.ArgumentParser, model: str) -> None:
    """Add what every training phase has: `--model`, described as `model`, `--pairs` and which rows, `--output`."""
    parser.add_argument("--model", required=True, metavar="DIR", help=f"{model}: a folder or a Hub id")
    add_files(parser, {"--pairs": PAIRS_TABLE}, required=True)
    add_row_options(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where the trained checkpoint goes")


def flags_of(args: argparse.Namespace) -> dict[str, Any]:
    """Find the fields of a config that were given as flags."""
    return {name.removeprefix(FIELD): value for name, value in vars(args).items() if name.startswith(FIELD)}


def run_of(args: argparse.Namespace, run_class: type[Run], **tables: Any) -> Run:
    """Make the run that parsed options and `tables` describe: `--config`, over it flags, and over these `--cpu`."""
    from mmemb_r1.training.run import read_recipe

    if args.config is not None:
        check_file("--config", args.config)
    recipe = read_recipe(args.config, run_class)
    recipe["settings"] |= flags_of(args) | (on_cpu() if args.cpu else {})
    given = {
        "model": args.model,
        "pairs": args.pairs,
        "output": args.output,
        "base": args.base,
        "accept_changes": args.accept_changes,
    }
    recipe |= {} if args.columns is None else {"columns": args.columns}
    return run_class(**given, **recipe, **tables)


def on_cpu() -> dict[str, bool]:
    """Give the fields of a config that `--cpu` sets."""
    return {"use_cpu": True, "bf16": False, "activation_checkpointing": False}


def is_main_process() -> bool:
    """Tell whether this process, of those of a run, is the one that prints."""
    from accelerate import PartialState

    return PartialState().is_main_process
