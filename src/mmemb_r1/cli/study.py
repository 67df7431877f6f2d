"""`mmemb-r1 study`: the method's claims, checked by training without one part of it at a time."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmemb_r1.study.tasks import Study

HELP = """\
Train the whole method on Atlas with a tiny model, and again without one part of it at a time; evaluate each; and write
down which of the published claims hold. Everything goes into one directory. What is done is not done again: a run that
was stopped or killed goes on with the same command, and the full form may take several of them."""

RESULTS = "results.json"


def configure(parser: argparse.ArgumentParser) -> None:
    from mmemb_r1.study.rows import BY_NAME

    parser.add_argument("--output", type=Path, default=Path("runs/study"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--full", action="store_true", help="twice the steps, and three seeds where that matters most")
    parser.add_argument("--tiny", action="store_true", help="a few steps on a small Atlas, to try the command")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"some of: {', '.join(BY_NAME)}; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="of all rows; default: those of the form")
    parser.add_argument("--jobs", type=int, metavar="N", help="stages at a time; default: 2 on two cores or more")
    parser.add_argument(
        "--warm-up", type=Path, metavar="DIR", help="a checkpoint that the first seed starts from; default: made here"
    )
    parser.add_argument(
        "--evaluator",
        type=Path,
        metavar="DIR",
        help="who judges rationales, a vision-language model or an mmemb-r1 checkpoint; default: trained here",
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="also write the results as a page, Markdown")


def run(args: argparse.Namespace) -> int:
    import os
    import shutil
    import time

    from rich.console import Console

    from mmemb_r1._files import replaced_file
    from mmemb_r1.study.runner import run_tasks
    from mmemb_r1.study.sessions import Session
    from mmemb_r1.study.tasks import tasks_of

    study = study_of(args)
    jobs = min(2, os.cpu_count() or 1) if args.jobs is None else args.jobs
    if jobs < 1:
        raise ValueError(f"--jobs {jobs}: at least 1 is needed")
    claim_folder(study)
    console = Console(width=max(100, shutil.get_terminal_size().columns))
    session = Session(study.output, jobs)

    def tell(line: str) -> None:
        session.note()
        console.print(line, markup=False, highlight=False)

    start = time.perf_counter()
    done = run_tasks(study, tasks_of(study), jobs, tell)
    session.note()
    console.print(f"{done} stages in {(time.perf_counter() - start) / 60:.0f} minutes")

    from mmemb_r1.study.page import page
    from mmemb_r1.study.report import as_tables, results_of

    results = results_of(study)
    with replaced_file(study.output / RESULTS) as temporary:
        temporary.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    for table in as_tables(results):
        console.print(table)
    if args.page is not None:
        with replaced_file(args.page) as temporary:
            temporary.write_text(page(results), encoding="utf-8")
        console.print(f"written to {args.page}")
    return 0


def study_of(args: argparse.Namespace) -> Study:
    """What the arguments ask for, checked before anything is done."""
    from mmemb_r1.study.forms import FULL_FORM, QUICK, TINY
    from mmemb_r1.study.rows import ROWS, with_needed
    from mmemb_r1.study.tasks import Study

    if args.full and args.tiny:
        raise ValueError("--full and --tiny: allowed is one of them")
    for option in ("warm_up", "evaluator"):
        path = getattr(args, option)
        if path is not None and not (path / "config.json").is_file():
            raise ValueError(
                f"--{option.replace('_', '-')} {path}: there is no checkpoint; leave it out to have it made"
            )
    rows = ROWS if args.rows is None else with_needed(args.rows)
    form = FULL_FORM if args.full else TINY if args.tiny else QUICK
    seeds = None if args.seeds is None else tuple(dict.fromkeys(args.seeds))
    return Study(args.output, form, tuple(rows), args.warm_up, args.evaluator, seeds)


def claim_folder(study: Study) -> None:
    """Another form, or other models to start from, must not go on in this one's folder; other rows and seeds may."""
    from dataclasses import asdict
    from hashlib import sha256

    from mmemb_r1._files import claim

    def digest(folder: Path | None) -> Any:
        if folder is None:
            return "made here"
        weights = sorted(folder.glob("*.safetensors"))
        return sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()

    given = {"warm_up": digest(study.warm_up), "evaluator": digest(study.evaluator)}
    claim(study.output / "study.json", {"form": asdict(study.form), **given})
