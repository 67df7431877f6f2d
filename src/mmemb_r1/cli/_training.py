"""Share between the training commands: options, the fields of a config as flags, and the run that they describe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mmemb_r1.cli._options import add_row_options

if TYPE_CHECKING:
    from mmemb_r1.training.run import TrainingRun

    Run = TypeVar("Run", bound=TrainingRun)

FIELD = "field:"  # before a config's field in the parsed arguments: some have the names of other options
SET_BY_OUTPUT = "output_dir"


class PhaseParser(argparse.ArgumentParser):
    """
    Parse the options of a training phase, and every field of its config as a flag.

    The fields are added when this phase is parsed, not before: to import a config takes seconds.

    Args:
        config: import path of the config's class. Default: there are no fields.
    """

    def __init__(self, *args: Any, config: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config = config

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as `argparse` does; abbreviated options are not taken, for a config has many fields."""
        if self.config is None:
            return super().parse_known_args(args, namespace)
        usage = self.format_usage().removeprefix("usage: ").strip().replace("%", "%%")
        whole = argparse.ArgumentParser(
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
    """The fields of a config as flags that leave nothing where they are not given."""
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


def add_training_options(parser: argparse.ArgumentParser, config: str) -> None:
    """Add `--config` and `--cpu`; `config` names the class of the config."""
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"YAML: fields of {config} and their values")
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
    add_row_options(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where the trained checkpoint goes")
    add_training_options(parser, config)


def run_of(args: argparse.Namespace, run_class: type[Run], **tables: Any) -> Run:
    """
    Make the run that parsed options describe: `--config`, and over it flags, and over these `--cpu`.

    Args:
        args: with `model`, `pairs`, `output`, `config` and `cpu`.
        run_class: what to make.
        tables: further arguments of the run.
    """
    from mmemb_r1.training.run import read_recipe

    require_file("--config", args.config)
    recipe = read_recipe(args.config, run_class)
    flags = {name.removeprefix(FIELD): value for name, value in vars(args).items() if name.startswith(FIELD)}
    recipe["settings"] |= flags | (on_cpu() if args.cpu else {})
    return run_class(model=args.model, pairs=args.pairs, output=args.output, **recipe, **tables)


def on_cpu() -> dict[str, bool]:
    """The fields of a config that `--cpu` sets."""
    return {"use_cpu": True, "bf16": False, "activation_checkpointing": False}


def require_file(option: str, path: Path | None) -> None:
    """Refuse the path of an option that is no file, with a hint where it is the folder of a selection."""
    if path is None or path.is_file():
        return
    inside = path / "selected.parquet"
    hint = f"is a folder; say {inside}" if inside.is_file() else "there is no such file"
    raise ValueError(f"{option} {path}: {hint}")


def is_main_process() -> bool:
    """Whether this process prints, of those of a run."""
    from accelerate import PartialState

    return PartialState().is_main_process
