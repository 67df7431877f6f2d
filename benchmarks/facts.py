"""Write a benchmark's figures with what they depend on, so that they can be compared."""

from __future__ import annotations

import os
import platform
from argparse import Namespace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mmemb_r1.runs import write_json

PACKAGES = ("torch", "transformers", "accelerate", "trl", "sentence-transformers")


def write_facts(path: Path, results: Any, args: Namespace, **more: Any) -> None:
    """
    Write results as JSON with what they depend on: options, machine, versions.

    Args:
        path: the file; its folder is made.
        results: what was measured.
        args: of the command line, without `output`.
        **more: whatever else belongs to the figures.
    """
    facts = {
        "results": results,
        "options": {key: value for key, value in vars(args).items() if key != "output"},
        **more,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    write_json(path, facts)
