"""Where the tasks come from that `evaluate` and `diagnose` ask a model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmemb_r1.atlas import Atlas


def add_source_options(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Add `--atlas` or `--mmeb`, of which one is required, and `--split`; what is returned takes other sources."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--atlas", metavar="DIR", help="what `mmemb-r1 atlas build` wrote")
    source.add_argument("--mmeb", metavar="DIR", help="a local copy of MMEB-V2")
    parser.add_argument("--split", choices=("policy", "validation", "test"), help="of Atlas; default: test")
    return source


def atlas_split(args: argparse.Namespace) -> tuple[Atlas, str, dict[str, Any]]:
    """The Atlas that was asked for, the split, and what makes its tasks other tasks than those of another Atlas."""
    from mmemb_r1.atlas import load_atlas

    atlas, split = load_atlas(args.atlas), args.split or "test"
    return atlas, split, {"dataset": "Atlas", "split": split, "content": atlas.manifest["content_hash"]}


def listed(text: str) -> tuple[str, ...]:
    """
    The names of a comma-separated list.

    >>> listed("fact, flag")
    ('fact', 'flag')
    """
    return tuple(name.strip() for name in text.split(","))
