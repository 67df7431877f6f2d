"""Add the options of commands that run on Ray, and read them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


def add_ray_options(parser: argparse.ArgumentParser, workers: str) -> None:
    """Add `--ray`, and what the cluster is and gives; `workers` says what they are."""
    group = parser.add_argument_group("on Ray")
    group.add_argument("--ray", action="store_true", help=f"let several {workers}, work at the same time")
    group.add_argument(
        "--address", metavar="HOST", help="of a Ray cluster, or auto; default: Ray is started on this machine"
    )
    group.add_argument("--ray-workers", type=int, metavar="N", help="how many; default: as many as there is room for")
    group.add_argument("--threads", type=int, metavar="N", help="cores of each worker; default: 1")
    group.add_argument("--gpus", type=float, metavar="X", help="GPUs of each worker; default: 1 if there are any")


def ray_options(args: argparse.Namespace, also: Sequence[str] = ()) -> dict[str, Any] | None:
    """
    Give what the options of [`add_ray_options`] say, as arguments of the functions of `mmemb_r1.ray`; `None` without
    `--ray`.

    Raises:
        ValueError: if one of them, or of `also`, is given without `--ray`.
    """
    flags = {"address": "address", "workers": "ray_workers", "threads": "threads", "gpus": "gpus"}
    if not args.ray:
        for name in (*flags.values(), *also):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} is for work on Ray; add --ray, or leave it out")
        return None
    return {name: getattr(args, flag) for name, flag in flags.items() if getattr(args, flag) is not None}
