"""`mmemb-r1 init`: turn a vision-language model, or a published embedder, into a checkpoint."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.cli._options import is_vlm

if TYPE_CHECKING:
    from mmemb_r1.recipes import Recipe

HELP = """\
Turn a vision-language model into an untrained mmemb-r1 checkpoint: tokens are added, the reasoning gate and the
embedding head are attached, and everything is saved so that SentenceTransformer and AutoModel can load it. A published
embedder of a known recipe keeps its prompts and its vectors, which is checked on ten inputs before it is saved."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vlm", required=True, metavar="ID_OR_PATH", help="the model: a Hub id or a local folder")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="new folder for the checkpoint")
    parser.add_argument(
        "--dtype", default="auto", help="dtype of the weights, say bfloat16; default: as they are stored"
    )
    parser.add_argument(
        "--max-image-tokens",
        type=int,
        metavar="N",
        help="tokens of one picture; larger ones are made smaller; default: as large as the processor makes them",
    )
    parser.add_argument("--revision", help="commit, branch or tag of the Hub id")
    add_recipe_options(parser)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="a field of MMEmbR1Config, the value as JSON or plain text; may be repeated",
    )


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Add what says how an embedder is converted."""
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="how an embedder makes prompts and reads vectors: a known recipe, a YAML file, or none to keep its "
        "weights alone; default: recognised by its config and files",
    )
    parser.add_argument(
        "--base", metavar="ID_OR_PATH", help="model that adapters are merged into; default: the one that they name"
    )
    parser.add_argument(
        "--proof-dtype",
        choices=("float32", "weights"),
        default="float32",
        help="compare with the recipe in float32 (16-bit weights then take twice their memory), or in the dtype of "
        "the weights, less exactly; default: float32",
    )
    parser.add_argument("--force", action="store_true", help="save also if the vectors are not those of the recipe")


def run(args: argparse.Namespace) -> int:
    settings = parse_settings(args.settings)
    if args.max_image_tokens is not None:
        settings["max_image_tokens"] = args.max_image_tokens
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise ValueError(f"--output {args.output} exists and is not an empty folder; name a new one")

    from mmemb_r1.hub.source import check_model
    from mmemb_r1.recipes import find_recipe

    check_model(args.vlm, revision=args.revision)
    recipe = find_recipe(args.vlm, args.recipe, revision=args.revision, base=args.base)
    if recipe is not None:
        return _init_from_embedder(args, recipe, settings)
    if args.base is not None:
        raise ValueError(f"--base {args.base} is for adapters of an embedder that a recipe knows; leave it out")
    if not is_vlm(args.vlm, args.revision):
        raise ValueError(
            f"--vlm {args.vlm} is no vision-language model that transformers loads by AutoModelForImageTextToText; "
            "an mmemb-r1 checkpoint needs no init any more"
        )

    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mmemb_r1 import MMEmbR1
    from mmemb_r1.hub.source import cached_commit
    from mmemb_r1.model_card import write_model_card
    from mmemb_r1.recipes.recognise import Checkpoint, check_tokenizer, reading_checkpoint
    from mmemb_r1.runs import replaced_file

    # a backbone with code of its own could not be loaded again as part of a checkpoint
    options = {"revision": args.revision, "trust_remote_code": False}
    check_tokenizer(Checkpoint(args.vlm, args.revision))
    with reading_checkpoint(args.vlm):
        vlm = AutoModelForImageTextToText.from_pretrained(args.vlm, dtype=args.dtype, use_safetensors=True, **options)
        processor = AutoProcessor.from_pretrained(args.vlm, **options)
    model = MMEmbR1.from_vlm(vlm, processor, **settings)
    record = made_from(args.vlm, cached_commit(args.vlm, args.revision))
    # a save that fails, of a full disk say, leaves nothing in the way of the next try
    with replaced_file(args.output.resolve()) as folder:
        model.save_pretrained(str(folder), create_model_card=False)
        write_model_card(folder, training=record)
    print(f"saved an untrained checkpoint to {args.output}")
    return 0


def _init_from_embedder(args: argparse.Namespace, recipe: Recipe, settings: dict[str, Any]) -> int:
    from mmemb_r1.model_card import write_model_card
    from mmemb_r1.recipes import convert
    from mmemb_r1.recipes.recognise import Checkpoint, fits
    from mmemb_r1.runs import replaced_file

    print(f"{args.vlm}: {'taken as' if args.recipe else 'recognised as'} {recipe.name}")
    for line in recipe_lines(recipe):
        print(f"  {line}")
    checkpoint = Checkpoint(args.vlm, args.revision, args.base)
    if recipe.recognise and not any(fits(signs, checkpoint) for signs in recipe.recognise):
        print(f"  note: nothing in {args.vlm} shows that this is its recipe; vectors by another one are of no use")
    converted = convert(
        args.vlm,
        recipe,
        revision=args.revision,
        base=args.base,
        dtype=args.dtype,
        proof_dtype=args.proof_dtype,
        **settings,
    )
    print(f"compared with the recipe in plain transformers calls: {converted.proof.described()}")
    record = made_from(args.vlm, converted.commit) | {
        "recipe": recipe.name,
        "compared with the recipe": converted.proof.described(),
        "training": "none: the gate is new, the weights are the embedder's",
    }
    with replaced_file(args.output.resolve()) as folder:
        converted.save(folder, force=args.force)
        write_model_card(folder, training=record)
    print(f"saved a checkpoint with the embedder's direct vectors to {args.output}; its gate is not trained")
    return 0


def recipe_lines(recipe: Recipe) -> list[str]:
    """Say what a recipe does to a checkpoint, line by line."""
    where = "at" if recipe.read.position == "marker" else "before"
    after = f"at {recipe.thought.end}" if recipe.thought.read_at == "end" else "in the same way, after the thought"
    told = [
        f"from {recipe.source}",
        f"direct vectors are read {where} {recipe.read.marker}, reasoned ones {after}",
    ]
    if recipe.loading == "lora":
        told.append("its adapters are merged into their base model")
    if recipe.spaces > 1:
        told.append("direct and reasoned vectors do not compare with one another")
    return told + [f"note: {note}" for note in recipe.notes]


def made_from(vlm: str, commit: str | None) -> dict[str, Any]:
    """
    Record what a checkpoint is made from, for its model card: a folder of this machine stays unnamed.

    >>> made_from("org/vlm", None)
    {'phase': 'init', 'base model': 'org/vlm', 'training': 'none: gate and embedding head are new'}
    """
    from mmemb_r1.model_card.record import BASE_MODEL, INIT

    record = {"phase": INIT, BASE_MODEL: "not recorded: it was read from a folder" if Path(vlm).is_dir() else vlm}
    if commit:
        record["commit of the base model"] = commit
    return record | {"training": "none: gate and embedding head are new"}


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Read `NAME=VALUE` texts; a value that is no JSON is taken as the text it is.

    >>> parse_settings(["embedding_dim=256", "pooling=mean"])
    {'embedding_dim': 256, 'pooling': 'mean'}
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--set {setting!r} is not of the form NAME=VALUE")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
    return values
