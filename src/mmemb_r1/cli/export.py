"""`mmemb-r1 export`: write a checkpoint in a form that other programs load."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

HELP = "Write a checkpoint in a form that programs load which do not know mmemb-r1."
DIRECT_HELP = """\
Write the direct path of a checkpoint as a plain folder of sentence-transformers: the backbone in its own layout,
last-token or mean pooling, the projection, and the norm. It needs neither remote code nor this package, so that
whatever loads a model of sentence-transformers loads it by its name. Its vectors are those of reasoning="never", which
is tested on ten inputs before the folder is kept; there is no gate, and the model writes nothing.

What a plain folder can't say is refused: attention pooling, positions of pictures that are counted like text, adapters
that are not merged. Videos are left out: sentence-transformers samples other frames."""
VLLM_HELP = """\
Write a checkpoint as a folder that vLLM serves: the backbone in its own layout with processor and chat template, and
in mmemb_r1/ the gate, the embedding head, and what tells a client whether a server runs this model. The folder's
README has the lines that start the servers, and those that embed with them.

What vLLM can't run as this package does is refused: poolings other than last, positions of pictures that are counted
like text, adapters that are not merged, modules after the first one."""


def configure(parser: argparse.ArgumentParser) -> None:
    forms = parser.add_subparsers(dest="form", metavar="FORM", required=True)
    direct = forms.add_parser("direct", help="a plain folder of sentence-transformers", description=DIRECT_HELP)
    _add_arguments(direct, "on which vectors are compared; default: a GPU if there is one")
    direct.add_argument("--force", action="store_true", help="write the folder also if its vectors differ")
    vllm = forms.add_parser("vllm", help="a folder that vLLM serves", description=VLLM_HELP)
    _add_arguments(vllm, "on which the built-in prompt is read; default: a GPU if there is one")
    vllm.add_argument("--name", metavar="NAME", help="to serve it under, in the README; default: MODEL's")


def _add_arguments(form: argparse.ArgumentParser, device_help: str) -> None:
    form.formatter_class = argparse.RawDescriptionHelpFormatter
    form.add_argument("model", metavar="MODEL", help="the checkpoint: a folder or a Hub id")
    form.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder")
    form.add_argument("--revision", metavar="REV", help="branch, tag or commit of a Hub id; default: main")
    form.add_argument(
        "--dtype", metavar="DTYPE", help="of the weights, such as bfloat16 or float32; default: as they are stored"
    )
    form.add_argument("--device", metavar="DEVICE", help=device_help)


def run(args: argparse.Namespace) -> int:
    from mmemb_r1 import MMEmbR1
    from mmemb_r1.export.folders import check_new

    check_new(args.folder)
    dtype: dict[str, Any] = {} if args.dtype is None else {"model_kwargs": {"dtype": args.dtype}}
    model = MMEmbR1(args.model, revision=args.revision, device=args.device, **dtype)
    return {"direct": _direct, "vllm": _vllm}[args.form](model, args)


def _direct(model: Any, args: argparse.Namespace) -> int:
    from mmemb_r1.export import export_direct

    proof = export_direct(model, args.folder, force=args.force)
    print(f'compared with reasoning="never": {proof.described()}')
    print(f"saved to {args.folder}; SentenceTransformer({str(args.folder)!r}) loads it")
    return 0


def _vllm(model: Any, args: argparse.Namespace) -> int:
    from mmemb_r1.export import export_vllm
    from mmemb_r1.hub.source import cached_commit

    commit = cached_commit(args.model, args.revision)
    facts = export_vllm(model, args.folder, name=args.name, revision=commit)
    print(f"fingerprint {facts['fingerprint']}")
    print(f"saved to {args.folder}; its README.md says how vLLM serves it")
    return 0
