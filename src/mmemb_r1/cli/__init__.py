"""Run the `mmemb-r1` command: each sub-command is one module of this package and one line of `COMMANDS`.

The module of `train-evaluator` is `train_evaluator`; that of `import`, which Python keeps for itself, is `import_`. It
has `HELP` (what the command does, shown above its options), `configure(parser)` and `run(args) -> int`. It is imported
only when the command is used, and imports only the standard library at its top: every `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from keyword import iskeyword

import mmemb_r1
from mmemb_r1.cli._options import CommandParser
from mmemb_r1.cli._reporting import reporting

COMMANDS = {
    "init": "turn a vision-language model into an untrained mmemb-r1 checkpoint",
    "encode": "embed the inputs of a JSON lines file",
    "import": "read public data sets, or files of your own, as tables of pairs and rationales",
    "index": "index a folder or a table of your own, or bring its index up to date",
    "search": "search an index by text or picture",
    "demo": "search an index in the browser",
    "serve": "answer requests for embeddings over HTTP, as OpenAI's API does",
    "rationales": "draw rationales from a pool of workers (the prior)",
    "train-evaluator": "train the evaluator, which tells whether a query and a document match",
    "pairs": "check pairs tables: broken files, lengths, duplicates",
    "select": "keep the rationales that bring a query closer to its document (the posterior)",
    "train": "train a checkpoint",
    "calibrate": "set the gate's threshold for a wanted invocation rate",
    "evaluate": "measure a model on pairs, Atlas, MMEB-V2 or tasks of your own",
    "compare": "test whether two evaluations differ by more than chance",
    "diagnose": "test whether a checkpoint reads its rationales",
    "export": "write a checkpoint in a form that other programs load",
    "card": "write a checkpoint's model card, or check it",
    "push": "upload a checkpoint to the Hub",
    "pull": "download a checkpoint from the Hub and verify it",
    "atlas": "build the Atlas benchmark",
}
USER_ERROR = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mmemb-r1` and return its exit status: 0, 2 for an error that the user can correct, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with reporting():  # before the libraries are imported, which is while the options of `train` are parsed
        return exit_status(_parser(arguments).parse_args(arguments))


def exit_status(args: argparse.Namespace) -> int:
    """Call `args.run`; report an error that the user can correct in one line, or with a traceback after `--debug`."""
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
    """Run a sub-command, with arguments as on the command line, and return its exit status; its errors are raised."""
    args = _parser(arguments).parse_args(arguments)
    return args.run(args)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Make the parser of all sub-commands, with the options of the one that `arguments` ask for."""
    parser = CommandParser(prog="mmemb-r1", description="Multimodal embeddings that decide when to reason.")
    parser.add_argument("--version", action="version", version=f"mmemb-r1 {mmemb_r1.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if name == asked:
            module = import_module(f"{__name__}.{name.replace('-', '_')}{'_' if iskeyword(name) else ''}")
            command.description = module.HELP
            command.formatter_class = argparse.RawDescriptionHelpFormatter
            module.configure(command)
            command.set_defaults(run=module.run)
    return parser
