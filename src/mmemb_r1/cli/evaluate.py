"""`mmemb-r1 evaluate`: measure a model on Atlas, MMEB-V2, a pairs table or tasks of one's own."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmemb_r1.cli._options import listed
from mmemb_r1.cli._sources import add_source_options, asked_source, listed_tasks
from mmemb_r1.cli._submission import OPTIONS as OF_SUBMISSION
from mmemb_r1.cli._submission import add_submission_options, check_options, metadata_of, submit, submitted_mode
from mmemb_r1.evaluation.settings import MODES

if TYPE_CHECKING:
    from mmemb_r1.evaluation import Settings
    from mmemb_r1.evaluation.run_folder import Results
    from mmemb_r1.evaluation.tasks import TaskSource


HELP = """\
Measure a model on Atlas, on a local copy of MMEB-V2, on a pairs table or on what a reader of your own reads: per task
and reasoning mode the score with its interval, how many queries thought, tokens of their rationales and seconds per
query. The model is an mmemb-r1 checkpoint or any sentence-transformers model, which can't think. Nothing is fetched
from MMEB's datasets without --download.

--output RUN/ keeps all that is measured in a folder, and the same command goes on where a killed one stopped:
  results.json, results.md, report.html   everything together
  tasks/TASK/MODE.parquet                 a row per query
  cache/                                  vectors; may be removed when all is measured
--output FILE.json keeps the results alone, at the end."""

FORMATS = ("table", "markdown", "json")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a folder or a Hub id")
    add_source_options(parser)
    parser.add_argument(
        "--download",
        action="store_true",
        help="first fetch the tasks of MMEB from the Hub into its folder, without --tasks all 78; what is there stays",
    )
    parser.add_argument("--modes", help=f"comma-separated; default: {','.join(MODES)}, of other models never")
    parser.add_argument("--output", type=Path, metavar="RUN", help="a folder, or a file that ends in .json")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of what is printed; default: table")
    parser.add_argument("--document-reasoning", choices=MODES, default="never", help="of candidates; default: never")
    parser.add_argument("--gate-threshold", type=float, metavar="P", help="auto thinks from this gate probability on")
    parser.add_argument("--max-reasoning-tokens", type=int, metavar="N", help="budget of one rationale")
    parser.add_argument("--max-reasoning-rounds", type=int, metavar="N", help="how often one input may think")
    parser.add_argument("--rationales", action="store_true", help="keep rationales, in rows of --output RUN/")
    parser.add_argument(
        "--cache",
        metavar="DIR",
        help="keep vectors here, for other runs too; default: cache in --output RUN/",
    )
    parser.add_argument("--num-frames", type=int, metavar="N", help="of a video of MMEB; default: 8")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N queries of each task, for a quick look")
    add_submission_options(parser)
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument("--device", help="say cpu or cuda:1; default: the best one there is")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code of another model's repository")


def run(args: argparse.Namespace) -> int:
    modes = None if args.modes is None else listed(args.modes)
    if unknown := [mode for mode in modes or () if mode not in MODES]:
        raise ValueError(f"--modes {args.modes}: {unknown[0]!r} is not known; allowed: {', '.join(MODES)}")
    _check(args)
    told = check_options(args, modes)

    from mmemb_r1.cli._options import load_model, show_progress
    from mmemb_r1.evaluation import run_evaluation, save_results

    bar = show_progress("mmemb_r1.evaluation")
    source = _source(args)
    model = load_model(args.model, args.device, args.trust_remote_code)
    name = Path(args.model).resolve().name
    settings = _settings(args, modes or (MODES if hasattr(model, "explain") else ("never",)))
    if args.submission:
        submitted = submitted_mode(args.submission_mode, settings.modes), metadata_of(model, name, told)
    folder = args.output if args.output and args.output.suffix != ".json" else None
    results = run_evaluation(
        model, source, settings, output=folder, cache=args.cache, config={"model": name}, progress=bar
    )
    if args.output and folder is None:
        save_results(results, args.output)
    _show(results, args.format)
    if args.submission:
        submit(results, *submitted, args.submission)
    print(_next_step(args, folder), file=sys.stderr)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse options that would do nothing."""
    of_mmeb = {
        "--download": args.download or None,
        "--num-frames": args.num_frames,
        **{f"--{option.replace('_', '-')}": getattr(args, option) for option in OF_SUBMISSION},
    }
    for option, value in of_mmeb.items():
        if value is not None and not args.mmeb:
            raise ValueError(f"{option} is for --mmeb; leave it out")
    if args.rationales and (args.output is None or args.output.suffix == ".json"):
        raise ValueError("--rationales are kept in the rows of a run's folder; name one: --output RUN/")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit {args.limit}: at least 1 is needed")


def _settings(args: argparse.Namespace, modes: tuple[str, ...]) -> Settings:
    from mmemb_r1.evaluation import Settings

    return Settings(
        modes=modes,
        document_reasoning=args.document_reasoning,
        batch_size=args.batch_size,
        gate_threshold=args.gate_threshold,
        max_reasoning_tokens=args.max_reasoning_tokens,
        max_reasoning_rounds=args.max_reasoning_rounds,
        rationales=args.rationales,
        no_image=args.atlas is not None,
    )


def _source(args: argparse.Namespace) -> TaskSource:
    """Read the tasks, after a download where one is asked for; a submission needs all tasks of MMEB-V2."""
    if not args.mmeb:
        return asked_source(args, limit=args.limit)
    from mmemb_r1.evaluation.mmeb import check_tasks, download_task, select

    tasks = select(listed_tasks(args))
    if args.submission and args.tasks is not None:
        check_tasks([task.name for task in tasks])
    for number, task in enumerate(tasks if args.download else (), start=1):
        print(f"downloading {task.name} ({number} of {len(tasks)}) into {args.mmeb}", file=sys.stderr)
        download_task(task.name, args.mmeb)
    source = asked_source(args, limit=args.limit, num_frames=args.num_frames)
    if args.submission:
        check_tasks(source.tasks.names)  # type: ignore[attr-defined]  # LocalTasks: --limit is refused before
    return source


def _next_step(args: argparse.Namespace, folder: Path | None) -> str:
    """Say where the results are, and which command goes on from there."""
    if folder is None:
        where = f"Results are in {args.output}. " if args.output else ""
        return f"{where}Next: the same with --output RUN/ keeps rows, for a report and `mmemb-r1 compare`"
    return (
        f"Results are in {folder}. Next: `mmemb-r1 compare {folder} OTHER_RUN`, or for the model card "
        f"`mmemb-r1 card {args.model} --results {folder / 'results.json'}`"
    )


def _show(results: Results, kind: str) -> None:
    from mmemb_r1.evaluation.report.text import print_table, results_markdown, results_table

    if kind == "json":
        print(json.dumps(results, indent=2, ensure_ascii=False))
    elif kind == "markdown":
        print(results_markdown(results), end="")
    else:
        print_table(results_table(results))
        overall = results.get("overall", {})
        if "refused" in overall:
            print(f"{len(results['tasks'])} tasks were run. There is no overall: {overall['refused']}")
        elif overall:
            print("overall: " + ", ".join(f"{mode} {100 * value:.2f}" for mode, value in overall.items()))
