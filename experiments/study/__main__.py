"""Run the study: `make study`, or `python -m experiments.study`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mmemb_r1.cli import exit_status

if TYPE_CHECKING:
    from experiments.study.tasks import Study


HELP = """\
Train the whole method on Atlas with a tiny model, and again without one part of it at a time; evaluate each; and write
down which of the published claims hold. Everything goes into one directory. What is done is not done again: a run that
was stopped or killed goes on with the same command, and the full form may take several of them. Other --rows and
--seeds of the same form may be added later; results are those of all that lies in the directory. The quick form takes
about an hour on two cores."""

RESULTS, LOCK = "results.json", "study.lock"


def configure(parser: argparse.ArgumentParser) -> None:
    from experiments.study.rows import BY_NAME

    parser.add_argument("--output", type=Path, default=Path("runs/study"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--full",
        action="store_true",
        help="more steps, an evaluator that is trained, and three seeds where that matters most",
    )
    parser.add_argument("--tiny", action="store_true", help="a few steps on a small Atlas, to try the command")
    rows = "; ".join(f"{row.name} ({row.number}: {row.title})" for row in BY_NAME.values())
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"some of {rows}. Default: all")
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="N", help="seeds of all rows; default: those of the form"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="stages at a time; default: 2 on two cores or more")
    parser.add_argument(
        "--warm-up", type=Path, metavar="DIR", help="a checkpoint that seed 0 starts from; default: made here"
    )
    parser.add_argument(
        "--evaluator",
        type=Path,
        metavar="DIR",
        help="the model that scores rationales, a vision-language model or an mmemb-r1 checkpoint; default: what "
        "seed 0 starts from, with --full a model that is trained here",
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="also write the results as a page, Markdown")


def run(args: argparse.Namespace) -> int:
    import os
    import shutil
    import time

    from rich.console import Console

    from experiments.study.runner import check_origins, in_order, run_tasks
    from experiments.study.sessions import Session
    from experiments.study.tasks import tasks_of, whole
    from mmemb_r1.runs import replaced_file, write_json

    study = study_of(args)
    jobs = min(2, os.cpu_count() or 1) if args.jobs is None else args.jobs
    if jobs < 1:
        raise ValueError(f"--jobs {jobs}: at least 1 is needed")
    console = Console(width=max(100, shutil.get_terminal_size().columns))
    start = time.perf_counter()
    with only_one(study.output):
        claim_folder(study)
        session, tasks = Session(study.output, jobs), tasks_of(study)
        everything = whole(study)  # what will be reported: also rows and seeds that are not asked for this time
        check_origins(in_order(tasks_of(everything)))
        working = any(not task.done.exists() for task in tasks)

        def report(line: str) -> None:
            if working:
                session.note()
            console.print(line, markup=False, highlight=False)

        done = run_tasks(study, tasks, jobs, report)
        if working:
            session.note()
        console.print(f"{done} stages in {(time.perf_counter() - start) / 60:.0f} minutes")

        from experiments.study.page import page
        from experiments.study.report import as_tables, results_of

        results = results_of(everything)
        write_json(study.output / RESULTS, results, allow_nan=False)
    for table in as_tables(results):
        console.print(table)
    if args.page is not None:
        with replaced_file(args.page) as temporary:
            temporary.write_text(page(results), encoding="utf-8")
        console.print(f"written to {args.page}")
    return 0


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """For as long as the block lasts, no other study works in the folder; the lock of one that was killed is free."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"another study is at work in {folder}; wait for it, or choose another --output") from error
    try:
        yield
    finally:
        lock.release()


def study_of(args: argparse.Namespace) -> Study:
    """What the arguments ask for, checked before anything is done."""
    from experiments.study.forms import ATLAS_SEED, FULL_FORM, QUICK, TINY
    from experiments.study.rows import ROWS, with_needed
    from experiments.study.tasks import Study

    if args.full and args.tiny:
        raise ValueError("--full and --tiny were given; only one of them is allowed")
    for option in ("warm_up", "evaluator"):
        path = getattr(args, option)
        if path is not None and not (path / "config.json").is_file():
            raise ValueError(
                f"--{option.replace('_', '-')} {path}: there is no checkpoint; leave it out to have it made"
            )
    rows = ROWS if args.rows is None else with_needed(args.rows)
    form = FULL_FORM if args.full else TINY if args.tiny else QUICK
    seeds = None if args.seeds is None else tuple(dict.fromkeys(args.seeds))
    if args.warm_up is not None and seeds is not None and ATLAS_SEED not in seeds:
        raise ValueError(
            f"--warm-up {args.warm_up}: it is what seed {ATLAS_SEED} starts from, and --seeds "
            f"{' '.join(map(str, seeds))} has no {ATLAS_SEED}; add it, or leave --warm-up out"
        )
    return Study(args.output, form, tuple(rows), args.warm_up, args.evaluator, seeds)


def claim_folder(study: Study) -> None:
    """Another form, or other models to start from, must not go on in this one's folder; other rows and seeds may."""
    from dataclasses import asdict

    from experiments.study.tasks import CLAIM
    from mmemb_r1.fingerprint import folder_digest
    from mmemb_r1.runs import record_run

    given = {
        name: "made here" if folder is None else f"given, {folder_digest(folder)}"
        for name, folder in (("warm_up", study.warm_up), ("evaluator", study.evaluator))
    }
    record_run(study.output / CLAIM, {"form": asdict(study.form), **given})


def arguments_parser() -> argparse.ArgumentParser:
    """The parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.study", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    configure(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, as `mmemb-r1` does."""
    return exit_status(arguments_parser().parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
