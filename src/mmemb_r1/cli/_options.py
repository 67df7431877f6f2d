"""Add the options that several commands share, and load what they name."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from mmemb_r1.evaluation.tasks import TaskSource


PAIRS_TABLE = (
    "the pairs table: Parquet, JSON lines, JSON or CSV, a folder of them, of pictures with metadata or of "
    "save_to_disk, or a data set of the Hub, owner/name:config/split"
)


class CommandParser(argparse.ArgumentParser):
    """Parse the options of a command; one that is not known is refused there, with the nearest name."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, left = super().parse_known_args(args, namespace)
        refuse_unknown(self, left)
        return found, left


def refuse_unknown(parser: argparse.ArgumentParser, left: Sequence[str]) -> None:
    """End with an error that names the first option in what a parser left, if there is one."""
    from mmemb_r1.modeling.options_mmemb_r1 import nearest_name

    for given in left:
        if given.startswith("--"):
            known = [name for action in parser._actions for name in action.option_strings]
            name = given.partition("=")[0]
            parser.error(f"{name} is not known{nearest_name(name, known)} (--help lists all options)")


def add_shard_options(parser: argparse._ActionsContainer) -> None:
    """Add `--shard-size` and `--part`."""
    parser.add_argument(
        "--shard-size", type=int, default=64, metavar="N", help="inputs per file, lost at most; default: 64"
    )
    parser.add_argument(
        "--part", type=part, default=(1, 1), metavar="I/N", help="the I-th of N parts, for N machines; default: 1/1"
    )


def part(text: str) -> tuple[int, int]:
    """
    Parse I/N, the I-th of N parts.

    >>> part("2/3")
    (2, 3)
    """
    first, slash, count = text.partition("/")
    if not (slash and first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; allowed: I/N with I from 1 to N, for example 2/3")
    return int(first), int(count)


def listed(text: str) -> tuple[str, ...]:
    """
    Split a comma-separated list.

    >>> listed("fact, flag")
    ('fact', 'flag')
    """
    return tuple(name.strip() for name in text.split(","))


def check_file(option: str, path: Path) -> None:
    """Raise a ValueError unless the file that an option names is there."""
    if not path.is_file():
        raise ValueError(f"{option} {path}: there is no such file")


def check_table(option: str, path: Path | None, of_hub: bool = True) -> None:
    """Raise a ValueError unless an option names a table, `of_hub` too, with a hint for the folder of a selection."""
    from mmemb_r1.tables.files import SUFFIXES, has_table
    from mmemb_r1.tables.pairs import is_hub_table

    if path is None or (of_hub and is_hub_table(path)):
        return
    if (inside := path / "selected.parquet").is_file():
        raise ValueError(f"{option} {path}: is a folder; say {inside}")
    if not path.exists():
        raise ValueError(f"{option} {path}: there is no such file")
    if not has_table(path):
        raise ValueError(f"{option} {path}: the folder holds no files that end in {' or '.join(SUFFIXES)}")


def add_row_options(parser: argparse._ActionsContainer) -> None:
    """Add `--columns`, `--tasks`, `--per-task` and `--base`: what of the table of `--pairs` is read, and how."""
    add_columns_option(parser)
    parser.add_argument(
        "--tasks", type=listed, metavar="A,B", help="only pairs of these tasks or groups of tasks; default: all"
    )
    parser.add_argument("--per-task", type=int, metavar="N", help="only the first N pairs of each task; default: all")
    add_base_option(parser)


def pairs_options(args: argparse.Namespace) -> dict[str, Any]:
    """Give what the options of [`add_row_options`] say, as arguments of `read_pairs`."""
    return {"columns": args.columns, "tasks": args.tasks, "per_task": args.per_task, "base": args.base}


def pairs_told(args: argparse.Namespace) -> str:
    """Write `--pairs` and `--columns` as they were given, for a command that is shown."""
    from mmemb_r1.tables.columns import columns_flags

    return " ".join(["--pairs", str(args.pairs), *columns_flags(args.columns)])


class _Columns(argparse.Action):
    """Parse `OURS=THEIRS ...`, given at once or in several places."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, *args: Any) -> None:
        from mmemb_r1.tables.columns import PairForm, columns_flags, parse_columns

        try:
            found = parse_columns([*columns_flags(getattr(namespace, self.dest))[1:], *values])
            PairForm(found)
        except ValueError as error:
            parser.error(f"--{error}")
        setattr(namespace, self.dest, found)


def add_columns_option(parser: argparse._ActionsContainer, of: str = "the pairs table") -> None:
    """Add `--columns`: which columns of a table are ours."""
    parser.add_argument(
        "--columns",
        nargs="+",
        action=_Columns,
        metavar="OURS=THEIRS",
        help=f"columns of {of} with other names: query=anchor target=positive negatives=neg_1,neg_2, or parts of an "
        "input, query.text=question query.image=page; default: they have our names",
    )


def add_encoding_options(parser: argparse._ActionsContainer, **defaults: int | str | None) -> None:
    """
    Add options of `encode`, whose type, range and meaning are said once, in the table of options.

    Args:
        parser: gets the options, and `--device`.
        **defaults: name -> its default: a number; a text that says which it is; or `None` for the checkpoint's.
    """
    from mmemb_r1.modeling.options_mmemb_r1 import FIELDS, OPTIONS, describe_option

    rules = FIELDS | OPTIONS
    for name, default in defaults.items():
        rule, flag = rules[name], f"--{name.replace('_', '-')}"
        told = f"{describe_option(name, rules)}; default: {'what the checkpoint says' if default is None else default}"
        value = default if isinstance(default, int) else None
        if rule.kind is bool:
            parser.add_argument(flag, action="store_true", help=rule.meaning)
        elif rule.choices:
            parser.add_argument(flag, choices=rule.choices, help=told)
        else:
            metavar = "P" if rule.kind is float else "N"
            parser.add_argument(flag, type=_value_of(name), default=value, metavar=metavar, help=told)
    parser.add_argument("--device", help="say cpu or cuda:1; default: the best one there is")


def add_second_look_option(parser: argparse._ActionsContainer) -> None:
    """Add `--no-second-look`: `second_look` is `False` with it, else `None`."""
    told = "keep the vector after a rationale as it is; default: mixed with the direct one, if the checkpoint can"
    parser.add_argument("--no-second-look", dest="second_look", action="store_const", const=False, help=told)


def add_thinker_options(parser: argparse._ActionsContainer) -> None:
    """Add `--thinker` and `--thinker-form`, which `use_thinker` reads."""
    from mmemb_r1.modeling.options_mmemb_r1 import FIELDS, describe_option

    parser.add_argument(
        "--thinker",
        metavar="FILE",
        help="another model that writes the rationales: a YAML file of a worker's keys, or module:name for one of "
        "your own; default: the checkpoint writes them",
    )
    parser.add_argument(
        "--thinker-form",
        choices=FIELDS["thinker_form"].choices,
        help=f"{describe_option('thinker_form', FIELDS)}; default: what the checkpoint says",
    )


def use_thinker(model: Any, args: argparse.Namespace) -> None:
    """Let the model that `--thinker` names think for a loaded model, if one is named."""
    if args.thinker is None and args.thinker_form is None:
        return
    if not hasattr(model, "set_thinker"):
        raise ValueError(f"--thinker is for mmemb-r1 checkpoints, and this is a {type(model).__name__}; leave it out")
    model.set_thinker(args.thinker, args.thinker_form)


def add_engine_options(parser: argparse._ActionsContainer) -> None:
    """Add `--engine` and `--engine-options`, which `engine_given` reads."""
    parser.add_argument(
        "--engine",
        metavar="ENGINE",
        help="what runs the backbone of a checkpoint that `mmemb-r1 export vllm` wrote: vllm, in this process; or "
        "addresses, http://HOST:PORT of the server that reads states and, after a comma, of the one that writes "
        "rationales; default: local, torch in this process",
    )
    parser.add_argument(
        "--engine-options",
        nargs="+",
        metavar="NAME=VALUE",
        help="options of vLLM's LLM, say tensor_parallel_size=2 dtype=bfloat16, or of the connections to servers, say "
        "key_env=VLLM_API_KEY patience=600",
    )


def engine_given(args: argparse.Namespace) -> dict[str, Any]:
    """Give what the options of [`add_engine_options`] say, as an argument of [`MMEmbR1`]."""
    from mmemb_r1.engines.choice import engine_of, exported_folder

    if args.engine is None:
        if args.engine_options is not None:
            raise ValueError("--engine-options are those of --engine; name one, or leave them out")
        return {}
    options = parse_engine_options(args.engine_options or ())
    return {"engine": engine_of(args.engine, exported_folder(args.model), **options)}


def parse_engine_options(given: Sequence[str]) -> dict[str, Any]:
    """
    Parse options of an engine, whose values are written as in a YAML file.

    >>> parse_engine_options(["tensor_parallel_size=2", "enforce_eager=true", "kv_cache_dtype=fp8"])
    {'tensor_parallel_size': 2, 'enforce_eager': True, 'kv_cache_dtype': 'fp8'}
    """
    import yaml

    options = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not name or not equals:
            raise ValueError(f"--engine-options {one}; allowed: NAME=VALUE, say max_model_len=8192")
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--engine-options {one}: its value can't be read as one of YAML; quote it") from error
    return options


def _value_of(name: str) -> Callable[[str], Any]:
    """Make what reads an option's value, and refuses one that its table does not allow."""
    from mmemb_r1.modeling.options_mmemb_r1 import FIELDS, OPTIONS, check_option

    rules = FIELDS | OPTIONS

    def read(text: str) -> Any:
        try:
            number: Any = rules[name].kind(text)
        except ValueError:
            number = text
        try:
            return check_option(name, number, rules)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def add_base_option(
    parser: argparse._ActionsContainer, of: str = "the tables", kind: Callable[[str], Any] = Path
) -> None:
    """Add `--base`: where the relative paths in what is read start; `kind` is `str` where it may be an address."""
    parser.add_argument(
        "--base",
        type=kind,
        metavar="DIR",
        help=f"where relative paths of pictures and videos in {of} start; default: the folder of each file",
    )


def add_settle_options(parser: argparse._ActionsContainer) -> None:
    """Add the fields of [`SettleOptions`]: what becomes of rows that are broken or too long."""
    parser.add_argument(
        "--on-error", metavar="NAME", help="raise (the default) refuses the tables, skip leaves such rows out"
    )
    parser.add_argument("--max-skipped", type=float, metavar="X", help="share of the pairs at most; default: 0.01")
    add_limit_options(parser)


def add_limit_options(parser: argparse._ActionsContainer, longest: int | None = None) -> None:
    """Add what is too long; `longest` is the default for rationales, `None` for no limit."""
    parser.add_argument(
        "--max-input-tokens", type=int, metavar="N", help="of an input; default: what the model can read"
    )
    default = "no limit" if longest is None else f"{longest}, as for `mmemb-r1 train joint`"
    parser.add_argument(
        "--max-rationale-tokens", type=int, metavar="N", default=longest, help=f"of a rationale; default: {default}"
    )


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add `--atlas`, `--mmeb`, `--pairs` or `--reader`, of which one is required, and what chooses their tasks."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--atlas", metavar="DIR", help="what `mmemb-r1 atlas build` wrote")
    source.add_argument("--mmeb", metavar="DIR", help="a local copy of MMEB-V2")
    source.add_argument(
        "--pairs", metavar="FILE", help="a pairs table, as for training: a query competes for the targets of its task"
    )
    source.add_argument("--reader", metavar="MODULE:FUNCTION", help="a reader of your own, which reads --source")
    add_base_option(parser, "--pairs")
    add_columns_option(parser, "--pairs")
    parser.add_argument("--source", metavar="X", help="what --reader is given: a folder, a file, a name")
    parser.add_argument("--split", choices=("policy", "validation", "test"), help="of Atlas; default: test")
    parser.add_argument(
        "--tasks",
        type=listed,
        metavar="NAMES",
        help="comma-separated, of tasks or groups, say multi-hop, video or image/qa; default: all that are there",
    )


def asked_source(args: argparse.Namespace, *, limit: int | None = None, **of_mmeb: Any) -> TaskSource:
    """Read the tasks that the options of [`add_source_options`] ask for; `of_mmeb` are options of MMEB's reader."""
    from mmemb_r1.evaluation.readers import read_tasks

    for option, of in (("split", "atlas"), ("source", "reader"), ("base", "pairs"), ("columns", "pairs")):
        if getattr(args, option) is not None and getattr(args, of) is None:
            raise ValueError(f"--{option} is for --{of}; leave it out")
    if args.reader is not None and args.source is None:
        raise ValueError(f"--reader {args.reader} needs to be told what to read: --source X")
    if args.reader is not None:
        return read_tasks(args.reader, args.source, names=args.tasks, limit=limit)
    if args.pairs is not None:
        given = {"base": args.base, "columns": args.columns}
        return read_tasks("pairs", args.pairs, names=args.tasks, limit=limit, **given)
    if args.mmeb is not None:
        return read_tasks("mmeb", args.mmeb, names=args.tasks, limit=limit, **of_mmeb)
    return read_tasks("atlas", args.atlas, names=args.tasks, limit=limit, split=args.split or "test")


def model_name(model: str) -> str:
    """
    Name a model by the last part of its id or folder; what training left in `RUN/model` by the run.

    >>> model_name("org/name"), model_name("runs/joint/model")
    ('name', 'joint')
    """
    path = Path(model).resolve()
    return path.parent.name if path.name == "model" else path.name


def load_model(
    name: str, device: str | None = None, trust_remote_code: bool = False, engine: Any = None
) -> SentenceTransformer:
    """
    Load an mmemb-r1 checkpoint, which needs no remote code, or any other model of sentence-transformers. With an
    `engine`, see [`engine_given`], it is an mmemb-r1 checkpoint.

    Raises:
        HubError: an `OSError`, if a Hub id is not there or can't be reached.
        ValueError: if there is no such folder or device; for a vision-language model that is no checkpoint yet.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import load_file_path

    from mmemb_r1 import MMEmbR1
    from mmemb_r1.encoding import check_device
    from mmemb_r1.evaluation.encoders import ADAPTIVE_MODULE
    from mmemb_r1.hub.source import check_model

    check_device(device)
    check_model(name)
    if engine is not None:
        return MMEmbR1(name, device=device, engine=engine)
    path = load_file_path(name, "modules.json")
    if path is not None:
        types = [module["type"] for module in json.loads(Path(path).read_text(encoding="utf-8"))]
        if any(kind.split(".")[-1] == ADAPTIVE_MODULE for kind in types):
            return MMEmbR1(name, device=device)
    elif is_vlm(name):
        raise ValueError(
            f"--model {name} is a vision-language model, which makes no embeddings yet; turn it into a checkpoint: "
            f"mmemb-r1 init --vlm {name} --output DIR"
        )
    return SentenceTransformer(name, device=device, trust_remote_code=trust_remote_code)


def is_vlm(name: str, revision: str | None = None) -> bool:
    """Tell whether a folder or repository holds a vision-language model that writes; without a config it is none."""
    from transformers import PretrainedConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    config, _ = PretrainedConfig.get_config_dict(name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return isinstance(config, dict) and config.get("model_type") in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
