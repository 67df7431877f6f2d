"""`mmemb-r1 demo`: search an index in the browser."""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

HELP = """\
Show a page that searches an index by text and picture: results of the direct and the reasoned vector side by side,
what the gate decided, and the rationale as it is written.

    mmemb-r1 demo --index DIR                    an index that `mmemb-r1 index` made
    mmemb-r1 demo --model DIR --atlas DIR        the pictures of Atlas, indexed first

The page is served to this computer only, and neither it nor the server asks for anything elsewhere. Ctrl-C ends it."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index", metavar="DIR", help="the index; with --atlas, where it is kept; default: nowhere")
    parser.add_argument("--model", metavar="DIR", help="a checkpoint; default: the one that the index was made with")
    parser.add_argument("--atlas", metavar="DIR", help="what `mmemb-r1 atlas build` wrote, to index its pictures")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; others can use the page if it is "
                        "0.0.0.0; default: 127.0.0.1, this computer only")  # fmt: skip
    parser.add_argument("--port", type=int, metavar="N", help="default: the first free one from 7860 on")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--device", help="say cpu or cuda:1; default: the best one there is")


def run(args: argparse.Namespace) -> int:
    if args.index is None and args.atlas is None:
        raise ValueError("there is nothing to search: give --index DIR, or --model DIR and --atlas DIR")
    if args.atlas is not None and args.model is None:
        raise ValueError(f"--atlas {args.atlas} has to be indexed first: say by which --model DIR")

    from mmemb_r1.demo.page import build_page, gradio, serve

    gradio()  # before a model is loaded for nothing
    from mmemb_r1 import MMEmbR1
    from mmemb_r1.index import Index, build_index

    with ExitStack() as stack:
        model = None if args.model is None else MMEmbR1(args.model, device=args.device)
        folder = args.index or stack.enter_context(tempfile.TemporaryDirectory(prefix="mmemb-r1-demo-"))
        if args.atlas is not None:
            from mmemb_r1.demo.atlas_pictures import atlas_pictures

            build_index(atlas_pictures(args.atlas), model, folder)  # type: ignore[arg-type]  # there is a --model
        index = Index.open(folder, model, device=args.device)
        serve(
            build_page(index, f"mmemb-r1: {Path(args.atlas or args.index).name}"),
            args.host,
            args.port,
            inbrowser=args.open,
        )
    return 0
