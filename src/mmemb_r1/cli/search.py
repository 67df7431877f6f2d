"""`mmemb-r1 search`: search an index by text or picture."""

from __future__ import annotations

import argparse
import json
import tempfile
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.cli._options import (
    add_encoding_options,
    add_engine_options,
    add_second_look_option,
    add_thinker_options,
    engine_given,
    use_thinker,
)

if TYPE_CHECKING:
    from mmemb_r1.index import SearchResult

HELP = """\
Search an index that `mmemb-r1 index` made, by a text, a picture or video, or both.

    mmemb-r1 search "which flag has a dragon?" --index DIR
    mmemb-r1 search --image photo.jpg --index DIR --filter "metadata.year > 2020"

It prints a table; --json prints the hits as JSON, and --open shows them as pictures in the browser."""

TEXT_SHOWN = 60  # characters of a cell


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", nargs="?", metavar="TEXT", help="what is searched for")
    parser.add_argument("--image", metavar="FILE", help="a picture that is (part of) the query")
    parser.add_argument("--video", metavar="FILE", help="a video that is (part of) the query")
    parser.add_argument("--index", required=True, metavar="DIR", help="what `mmemb-r1 index` made")
    parser.add_argument("--model", metavar="DIR", help="the model it was made with, if that lies elsewhere now")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="hits at most; default: 10")
    parser.add_argument(
        "--filter", metavar="SQL", help="a condition over id, kind, path, page, text and metadata.NAME; default: none"
    )
    parser.add_argument("--exact", action="store_true", help="compare all vectors, also where the index is large")
    parser.add_argument(
        "--variety", type=float, default=0.0, metavar="X", help="0 to 1: how much hits have to differ; default: 0"
    )
    parser.add_argument(
        "--hybrid", action="store_true", help="fuse in a ranking by the words of the rationale, or of the query"
    )
    parser.add_argument("--json", action="store_true", help="print the hits as JSON, without thumbnails")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the hits as a page with pictures")
    parser.add_argument("--open", action="store_true", help="show that page in the browser")
    add_thinker_options(parser)
    add_engine_options(parser)
    thinking = dict.fromkeys(("reasoning", "gate_threshold", "max_reasoning_tokens", "max_reasoning_rounds"))
    add_second_look_option(parser)
    add_encoding_options(parser, **thinking, prompt="the checkpoint's for queries", allow_remote_media="")


def run(args: argparse.Namespace) -> int:
    query = {part: getattr(args, name) for part, name in (("text", "query"), ("image", "image"), ("video", "video"))}
    query = {part: value for part, value in query.items() if value}
    if not query:
        raise ValueError("there is no query; give a TEXT, --image FILE or --video FILE")

    from mmemb_r1 import MMEmbR1
    from mmemb_r1.index import Index

    names = ["reasoning", "gate_threshold", "max_reasoning_tokens", "max_reasoning_rounds", "second_look"]
    names += ["prompt", "device"]
    options: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    model: Any = args.model
    if args.engine or args.engine_options:
        if model is None:
            raise ValueError("--engine runs a checkpoint that was exported for it; name its folder: --model DIR")
        model = MMEmbR1(model, device=args.device, **engine_given(args))
    index = Index.open(args.index, model, device=options.pop("device", None))
    if args.thinker or args.thinker_form:
        use_thinker(index.model, args)
    result: Any = index.search(
        query,
        args.k,
        filter=args.filter,
        exact=args.exact,
        variety=args.variety,
        hybrid=args.hybrid,
        allow_remote_media=args.allow_remote_media,
        **options,
    )
    if args.json:
        print(json.dumps(_plain(result), ensure_ascii=False, default=str))
    else:
        _show(result)
    if args.html is not None or args.open:
        _write_page(args, query, result)
    return 0


def _plain(result: SearchResult) -> dict[str, Any]:
    """Make plain values of a result; thumbnails are left out."""
    from dataclasses import asdict

    plain = asdict(result)
    for hit in plain["hits"]:
        del hit["thumbnail"]
    return plain


def _show(result: SearchResult) -> None:
    """Print a result as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "score", "kind", "id", "text", box=box.SIMPLE)
    for rank, hit in enumerate(result.hits, start=1):
        metadata = ", ".join(f"{name}: {value}" for name, value in hit.metadata.items() if value is not None)
        text = " ".join(f"{hit.text} {metadata}".split())
        shown = text if len(text) <= TEXT_SHOWN else f"{text[: TEXT_SHOWN - 1]}…"
        table.add_row(str(rank), f"{hit.score:.3f}", hit.kind, Text(hit.id, overflow="fold"), Text(shown))
    console = Console()
    console.print(table)
    thought = f"reasoned, {result.num_reasoning_tokens} tokens" if result.reasoned else "not reasoned"
    console.print(f"gate {result.gate_prob:.2f}, {thought}, {result.seconds:.2f} s", highlight=False)
    if result.rationale:
        console.print(Text(result.rationale))


def _write_page(args: argparse.Namespace, query: dict[str, str], result: SearchResult) -> None:
    from mmemb_r1.index.sheet import html_sheet
    from mmemb_r1.runs import replaced_file

    if args.html is None:
        path = Path(tempfile.mkdtemp(prefix="mmemb-r1-search-")) / "hits.html"
    else:
        path = args.html
    with replaced_file(path) as temporary:
        temporary.write_text(html_sheet(" · ".join(query.values()), result), encoding="utf-8")
    if args.open:
        webbrowser.open(path.absolute().as_uri())
