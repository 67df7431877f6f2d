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


def configure(parser: argparse.ArgumentParser) -> None:
    forms = parser.add_subparsers(dest="form", metavar="FORM", required=True)
    direct = forms.add_parser("direct", help="a plain folder of sentence-transformers", description=DIRECT_HELP)
    direct.formatter_class = argparse.RawDescriptionHelpFormatter
    direct.add_argument("model", metavar="MODEL", help="the checkpoint: a folder or a Hub id")
    direct.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder")
    direct.add_argument("--revision", metavar="REV", help="branch, tag or commit of a Hub id; default: main")
    direct.add_argument(
        "--dtype", metavar="DTYPE", help="of the weights, such as bfloat16 or float32; default: as they are stored"
    )
    direct.add_argument(
        "--device", metavar="DEVICE", help="on which vectors are compared; default: a GPU if there is one"
    )
    direct.add_argument("--force", action="store_true", help="write the folder also if its vectors differ")


def run(args: argparse.Namespace) -> int:
    from mmemb_r1 import MMEmbR1
    from mmemb_r1.export import export_direct

    dtype: dict[str, Any] = {} if args.dtype is None else {"model_kwargs": {"dtype": args.dtype}}
    model = MMEmbR1(args.model, revision=args.revision, device=args.device, **dtype)
    proof = export_direct(model, args.folder, force=args.force)
    print(f'compared with reasoning="never": {proof.described()}')
    print(f"saved to {args.folder}; SentenceTransformer({str(args.folder)!r}) loads it")
    return 0
