"""`mmemb-r1 card`: write a checkpoint's model card from the files beside it, or check the one that is there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmemb_r1.cli._options import check_file

HELP = """\
Write the model card (README.md) of a checkpoint from the files in its folder:

  training.json                   which data, selection and settings (the trainers write it)
  results.json                    results and cost per query (`mmemb-r1 evaluate --output` writes it)
  curve.csv or curve-SPLIT.csv    scores over the gate's threshold, and the picture of the same name (.png) if any

A section without a file is left out. A file that an option names is copied into the folder. Licence, language, base
model, datasets, emissions and repository are kept from the card that is there unless they are given again; text that
was written into it by hand is not."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="the checkpoint, a folder")
    parser.add_argument("--results", type=Path, metavar="FILE", help="what `mmemb-r1 evaluate --output` wrote")
    parser.add_argument(
        "--curve", type=Path, metavar="FILE", help="CSV with the columns threshold, invocation, r1, low and high"
    )
    parser.add_argument(
        "--license", metavar="NAME", help="licence of the weights, as the Hub writes it, say apache-2.0"
    )
    parser.add_argument("--base-model", metavar="ID", help="Hub id of the backbone")
    parser.add_argument(
        "--dataset", action="append", metavar="ID", dest="datasets", help="Hub id of training data; may be repeated"
    )
    parser.add_argument(
        "--emissions",
        metavar="FILE_OR_GRAMS",
        help="emissions of the training: CodeCarbon's emissions.csv, or grams of CO2",
    )
    parser.add_argument("--repo-id", metavar="ORG/NAME", help="what the snippets load; default: the folder's name")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--print", action="store_true", help="print the card and write nothing")
    what.add_argument(
        "--check",
        "--validate",
        action="store_true",
        help="check the card that is there, offline: metadata, snippets and links, and whether the files beside it "
        "say what it tells of training, results and settings",
    )


def run(args: argparse.Namespace) -> int:
    options: dict[str, Any] = {
        name: value
        for name in ("results", "curve", "license", "base_model", "datasets", "emissions", "repo_id")
        if (value := getattr(args, name)) is not None
    }
    if args.check:
        return _check(args.directory, options)
    for name in ("results", "curve"):
        if name in options:
            check_file(f"--{name}", options[name])
    if "emissions" in options:
        options["emissions"] = _emissions(options["emissions"])

    from mmemb_r1.model_card import build_model_card, write_model_card

    if args.print:
        print(build_model_card(args.directory, keep=True, **options), end="")
    else:
        print(f"wrote {write_model_card(args.directory, keep=True, **options)}")
    return 0


def _check(directory: Path, options: dict[str, Any]) -> int:
    if options:
        name = {"datasets": "dataset"}.get(first := next(iter(options)), first).replace("_", "-")
        raise ValueError(f"--check looks at the card that is there; leave --{name} out, or leave --check out")
    path = directory / "README.md"
    if not path.is_file():
        raise ValueError(f"{directory}: there is no README.md to check; write one with `mmemb-r1 card {directory}`")

    from mmemb_r1.model_card import check_against_files, validate_model_card

    text = path.read_text(encoding="utf-8")
    validate_model_card(text, directory)
    check_against_files(text, directory)
    print(f"{path} is in order")
    return 0


def _emissions(text: str) -> Path | float:
    try:
        return float(text)
    except ValueError:
        if not Path(text).is_file():
            raise ValueError(f"--emissions {text}: neither a file nor a number of grams") from None
        return Path(text)
