"""`mmemb-r1 evaluate`: measure a model on Atlas or on MMEB-V2."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.cli._options import add_source_options, atlas_split, listed
from mmemb_r1.cli._submission import OPTIONS as OF_SUBMISSION
from mmemb_r1.cli._submission import add_submission_options, check_options, metadata_of, submit, submitted_mode
from mmemb_r1.evaluation.settings import MODES

if TYPE_CHECKING:
    from mmemb_r1.evaluation import Settings
    from mmemb_r1.evaluation.run_folder import Results
    from mmemb_r1.evaluation.tasks import RetrievalTask


HELP = """\
Measure a model on Atlas or on a local copy of MMEB-V2: per task and reasoning mode the score with its interval, how
many queries thought, tokens of their rationales and seconds per query. The model is an mmemb-r1 checkpoint or any
sentence-transformers model, which can't think. Nothing is fetched from MMEB's datasets without --download.

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
        "--tasks",
        metavar="NAMES",
        help="comma-separated, of tasks or groups, say multi-hop, video or image/qa; default: all that are there",
    )
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
    parser.add_argument("--rationales", action="store_true", help="keep what was thought, in rows of --output RUN/")
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
    tasks, noted = _mmeb(args) if args.mmeb else _atlas(args)
    model = load_model(args.model, args.device, args.trust_remote_code)
    name = Path(args.model).resolve().name
    settings = _settings(args, modes or (MODES if hasattr(model, "explain") else ("never",)))
    if args.submission:
        submitted = submitted_mode(args.submission_mode, settings.modes), metadata_of(model, name, told)
    folder = args.output if args.output and args.output.suffix != ".json" else None
    results = run_evaluation(
        model,
        tasks,
        settings,
        output=folder,
        cache=args.cache,
        extras=noted.pop("extras", None),
        config={"model": name, **noted},
        progress=bar,
    )
    if args.mmeb:
        results["overall"] = _overall(results)
    if folder is not None:
        from mmemb_r1.evaluation.report import write_reports

        write_reports(results, folder)
    elif args.output:
        save_results(results, args.output)
    _show(results, args.format)
    if args.output:
        print(f"results in {args.output}", file=sys.stderr)
    if args.submission:
        submit(results, *submitted, args.submission)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Options that would do nothing are refused."""
    of_atlas = {"--split": args.split}
    of_mmeb = {
        "--download": args.download or None,
        "--num-frames": args.num_frames,
        **{f"--{option.replace('_', '-')}": getattr(args, option) for option in OF_SUBMISSION},
    }
    for option, value in (of_atlas if args.mmeb else of_mmeb).items():
        if value is not None:
            raise ValueError(f"{option} is for {'--atlas' if args.mmeb else '--mmeb'}; leave it out")
    if args.rationales and (args.output is None or args.output.suffix == ".json"):
        raise ValueError("--rationales are kept in the rows of a run's folder; name one: --output RUN/")


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


def _atlas(args: argparse.Namespace) -> tuple[Iterable[RetrievalTask], dict[str, Any]]:
    """Atlas's tasks, and what to note of them."""
    from mmemb_r1.evaluation.atlas_tasks import atlas_tasks, majority, set_sizes
    from mmemb_r1.evaluation.summary import chosen

    atlas, split, data = atlas_split(args)
    pairs = atlas.pairs[split]
    if args.tasks is not None:
        groups = {task: {"complexity": group} for task, group in zip(pairs["task"], pairs["complexity"], strict=True)}
        wanted = set(chosen(groups, listed(args.tasks)))
        pairs = pairs.select([row for row, task in enumerate(pairs["task"]) if task in wanted])
    noted = {
        "dataset": "Atlas",
        "split": split,
        "candidates": set_sizes(atlas.candidates, pairs["candidate_set"]),
        "extras": majority(atlas.pairs["train"], pairs),
    }
    return _limited(atlas_tasks(pairs, atlas.candidates, data), args, noted), noted


def _mmeb(args: argparse.Namespace) -> tuple[Iterable[RetrievalTask], dict[str, Any]]:
    """MMEB-V2's tasks, each of them read when its turn comes, and what to note of them."""
    from mmemb_r1.evaluation.mmeb import check_tasks, load_tasks, select

    names = None if args.tasks is None else listed(args.tasks)
    options = {} if args.num_frames is None else {"num_frames": args.num_frames}
    noted = {"dataset": "MMEB-V2", **options}
    if args.submission and names is not None:
        check_tasks([task.name for task in select(names)])
    if args.download:
        _download(args.mmeb, names)
    tasks = load_tasks(args.mmeb, names, **options)
    if args.submission:
        check_tasks(tasks.names)
    return _limited(tasks, args, noted), noted


def _download(folder: str, names: Sequence[str] | None) -> None:
    """Fetch what is not there yet, task by task: the Hub's client shows how far each file is."""
    from mmemb_r1.evaluation.mmeb import download_task, select

    tasks = select(names)
    for number, task in enumerate(tasks, start=1):
        print(f"downloading {task.name} ({number} of {len(tasks)}) into {folder}", file=sys.stderr)
        download_task(task.name, folder)


def _limited(
    tasks: Collection[RetrievalTask], args: argparse.Namespace, noted: dict[str, Any]
) -> Iterable[RetrievalTask]:
    from mmemb_r1.evaluation.tasks import first_queries

    if args.limit is None:
        return tasks
    if args.limit < 1:
        raise ValueError(f"--limit {args.limit}: at least 1 is needed")
    noted["limit"] = args.limit
    return (first_queries(task, args.limit) for task in tasks)


def _overall(results: Results) -> dict[str, Any]:
    """Mode -> the mean of all tasks of MMEB-V2; or why there is none."""
    from mmemb_r1.evaluation.mmeb import overall, scores_of

    try:
        return {mode: overall(scores_of(results, mode)) for mode in results["config"]["modes"]}
    except ValueError as error:  # of a run of some tasks or queries, which says so
        return {"refused": str(error)}


def _show(results: Results, kind: str) -> None:
    from mmemb_r1.evaluation.report.markdown import results_markdown
    from mmemb_r1.evaluation.report.terminal import print_table, results_table

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
