"""The file that the leaderboard of MMEB takes: what is checked of it before a long run, and written after it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.evaluation.settings import MODES

if TYPE_CHECKING:
    from mmemb_r1.evaluation.run_folder import Results


OPTIONS = ("submission", "submission_mode", "submission_metadata")


def add_submission_options(parser: argparse.ArgumentParser) -> None:
    """Add `--submission`, `--submission-mode` and `--submission-metadata`."""
    parser.add_argument("--submission", type=Path, metavar="FILE", help="write the file that MMEB's leaderboard takes")
    parser.add_argument(
        "--submission-mode", choices=MODES, help="whose scores it has; needed where several modes are run"
    )
    parser.add_argument("--submission-metadata", type=Path, metavar="FILE", help="JSON: what it says of the model")


def check_options(args: argparse.Namespace, modes: Sequence[str] | None) -> dict[str, Any]:
    """
    Refuse options that no submission comes of, as far as they tell without the model and the tasks.

    Args:
        args: of the command.
        modes: that were asked for. `None`: those that the model can do.

    Returns:
        The metadata that were told.

    Raises:
        ValueError: if something is wrong; it says what.
    """
    if args.submission is None:
        for option in OPTIONS:
            if getattr(args, option) is not None:
                raise ValueError(f"--{option.replace('_', '-')} is of the file that --submission FILE writes; name it")
        return {}
    if args.limit is not None:
        raise ValueError("--submission takes all queries of all tasks; leave --limit out")
    if args.submission.is_dir():
        raise ValueError(f"--submission {args.submission} is a folder; name a file")
    if modes is not None:
        submitted_mode(args.submission_mode, modes)
    return _told(args.submission_metadata)


def submitted_mode(asked: str | None, modes: Sequence[str]) -> str:
    """
    The mode whose scores are submitted: the one that was asked for, or the only one.

    >>> submitted_mode(None, ["never"]), submitted_mode("auto", ["never", "auto"])
    ('never', 'auto')
    """
    if asked is None and len(modes) > 1:
        raise ValueError(f"--submission has the scores of one mode; choose it: --submission-mode {' or '.join(modes)}")
    if asked is not None and asked not in modes:
        raise ValueError(f"--submission-mode {asked}: that mode is not run; it would be {', '.join(modes)}")
    return asked or modes[0]


def _told(path: Path | None) -> dict[str, Any]:
    from mmemb_r1.evaluation.mmeb.submission import check_metadata

    if path is None:
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--submission-metadata {path} is no JSON ({error})") from error
    if not isinstance(told, dict):
        raise ValueError(f"--submission-metadata {path} holds a {type(told).__name__}; expected an object")
    check_metadata(told)
    return told


def metadata_of(model: Any, name: str, told: dict[str, Any]) -> dict[str, Any]:
    """
    What the file says of a model: what was told, and for the rest what the model tells itself.

    Raises:
        ValueError: if that is not what the leaderboard takes.
    """
    from mmemb_r1.evaluation.mmeb.submission import check_metadata

    parameters = sum(parameter.numel() for parameter in model.parameters())
    config = getattr(getattr(model[0], "model", None), "config", None)
    metadata = {
        "model_name": name,
        "model_backbone": getattr(getattr(config, "vlm_config", config), "model_type", None),
        "model_size": f"{parameters / 1e9:.2g}B",
        "embedding_dimension": model.get_embedding_dimension(),
        "max_length_tokens": getattr(model, "max_seq_length", None),
        "model_release_date": None,
        "url": None,
        **told,
    }
    check_metadata(metadata)
    return metadata


def submit(results: Results, mode: str, metadata: dict[str, Any], path: Path) -> None:
    """Write what the leaderboard takes; an error says what is missing."""
    from mmemb_r1.evaluation.mmeb.submission import submission, write_submission

    write_submission(submission(results, mode, metadata), path)
    print(f"the leaderboard's file, of mode {mode}, is {path}", file=sys.stderr)
