"""The `mmemb-r1` command: one module of this package per sub-command, imported only when that sub-command is used.

A sub-command's module offers `HELP` (what it does, shown above its options), `configure(parser)` and
`run(args) -> int`, and imports nothing but the standard library at its top, so that every `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

import mmemb_r1

COMMANDS = {
    "init": "turn a vision-language model into an untrained mmemb-r1 checkpoint",
    "encode": "embed the inputs of a JSON lines file",
    "rationales": "draw rationales from a pool of workers (the prior)",
    "train-evaluator": "train a model that judges whether a query and a target match",
    "select": "keep the rationales that help a query meet its target (the posterior)",
    "train": "train a checkpoint",
    "calibrate": "set the gate's threshold for a wanted share of inputs that think",
    "evaluate": "measure a model on Atlas or MMEB-V2",
    "compare": "tell whether two evaluations differ by more than chance",
    "diagnose": "test whether a checkpoint reads its rationales",
    "card": "write a checkpoint's model card, or check it",
    "push": "put a checkpoint on the Hub",
    "pull": "get a checkpoint from the Hub, verified",
    "atlas": "build the Atlas benchmark",
}
USER_ERROR = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mmemb-r1` and return its exit status: 0, 2 for an error of the user's, 130 when interrupted.

    Args:
        argv: The arguments; defaults to those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return exit_status(_parser(arguments).parse_args(arguments))


def exit_status(args: argparse.Namespace) -> int:
    """Run what `args.run` is, and report an error of the user's in one line, or with its traceback after `--debug`."""
    try:
        return args.run(args)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def run(arguments: Sequence[str]) -> int:
    """Run a sub-command and return its exit status; its errors are raised.

    Args:
        arguments: As on the command line.
    """
    args = _parser(arguments).parse_args(arguments)
    return args.run(args)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of all sub-commands, with the options of the one that `arguments` ask for."""
    parser = argparse.ArgumentParser(prog="mmemb-r1", description="Multimodal embeddings that decide when to reason.")
    parser.add_argument("--version", action="version", version=f"mmemb-r1 {mmemb_r1.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if name == asked:
            module = import_module(f"{__name__}.{name.replace('-', '_')}")
            command.description = module.HELP
            command.formatter_class = argparse.RawDescriptionHelpFormatter
            module.configure(command)
            command.set_defaults(run=module.run)
    return parser
