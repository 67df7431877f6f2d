"""`mmemb-r1 evaluate`: measure a model on Atlas or on MMEB-V2."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.cli._tasks import add_source_options, atlas_split, listed
from mmemb_r1.evaluation.settings import MODES

if TYPE_CHECKING:
    from mmemb_r1.evaluation import Settings
    from mmemb_r1.evaluation.run.results import Results
    from mmemb_r1.evaluation.tasks import RetrievalTask

HELP = """\
Measure a model on Atlas or on a local copy of MMEB-V2: per task and reasoning mode the score with its interval, how
many queries thought, tokens of their rationales and seconds per query. The model is an mmemb-r1 checkpoint or any
sentence-transformers model, which can't think.

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
        help="comma-separated, of MMEB also groups, say video or image/qa; default: all",
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
    parser.add_argument("--submission", type=Path, metavar="FILE", help="write the file that MMEB's leaderboard takes")
    parser.add_argument(
        "--submission-metadata",
        type=Path,
        metavar="FILE",
        help="JSON: what that file says of the model",
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument("--device", help="say cpu or cuda:1; default: the best one there is")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code of another model's repository")


def run(args: argparse.Namespace) -> int:
    modes = None if args.modes is None else listed(args.modes)
    if unknown := [mode for mode in modes or () if mode not in MODES]:
        raise ValueError(f"--modes {args.modes}: {unknown[0]!r} is not known; allowed: {', '.join(MODES)}")
    _check(args)

    from mmemb_r1.cli._loading import load_model
    from mmemb_r1.cli._shards import show_progress
    from mmemb_r1.evaluation import run_evaluation, save_results

    bar = show_progress("mmemb_r1.evaluation")
    tasks, noted = _mmeb(args) if args.mmeb else _atlas(args)
    model = load_model(args.model, args.device, args.trust_remote_code)
    folder = args.output if args.output and args.output.suffix != ".json" else None
    results = run_evaluation(
        model,
        tasks,
        _settings(args, modes or (MODES if hasattr(model, "explain") else ("never",))),
        output=folder,
        cache=args.cache,
        extras=noted.pop("extras", None),
        config={"model": Path(args.model).resolve().name, **noted},
        progress=bar,
    )
    if args.mmeb:
        results["overall"] = _overall(results)
    if folder is not None:
        from mmemb_r1.evaluation.reports.files import write_reports

        write_reports(results, folder)
    elif args.output:
        save_results(results, args.output)
    _show(results, args.format)
    if args.output:
        print(f"results in {args.output}", file=sys.stderr)
    if args.submission:
        submit(results, model, args)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Options that would do nothing are refused."""
    of_atlas = {"--split": args.split}
    of_mmeb = {
        "--num-frames": args.num_frames,
        "--submission": args.submission,
        "--submission-metadata": args.submission_metadata,
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
    from mmemb_r1.evaluation.tasks.atlas import atlas_tasks, majority, set_sizes

    atlas, split, data = atlas_split(args)
    pairs = atlas.pairs[split]
    if args.tasks:
        wanted, known = listed(args.tasks), set(pairs["task"])
        if unknown := [name for name in wanted if name not in known]:
            raise ValueError(f"--tasks: {unknown[0]!r} is no task of Atlas; allowed: {', '.join(sorted(known))}")
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
    from mmemb_r1.evaluation.mmeb import load_tasks

    names = None if args.tasks is None else listed(args.tasks)
    options = {} if args.num_frames is None else {"num_frames": args.num_frames}
    noted = {"dataset": "MMEB-V2", **options}
    return _limited(load_tasks(args.mmeb, names, **options), args, noted), noted


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
    from mmemb_r1.evaluation.reports.markdown import results_markdown
    from mmemb_r1.evaluation.reports.terminal import print_table, results_table

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


def submit(results: Results, model: Any, args: argparse.Namespace) -> None:
    """Write what the leaderboard takes; an error says what is missing."""
    from mmemb_r1.evaluation.mmeb.submission import submission, write_submission

    told = json.loads(args.submission_metadata.read_text(encoding="utf-8")) if args.submission_metadata else {}
    if not isinstance(told, dict):
        raise ValueError(f"{args.submission_metadata} holds a {type(told).__name__}; expected an object")
    modes = results["config"]["modes"]
    mode = "auto" if "auto" in modes else modes[0]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    config = getattr(getattr(model[0], "model", None), "config", None)
    metadata = {
        "model_name": results["config"]["model"],
        "model_backbone": getattr(getattr(config, "vlm_config", config), "model_type", None),
        "model_size": f"{parameters / 1e9:.2g}B",
        "embedding_dimension": model.get_embedding_dimension(),
        "max_length_tokens": getattr(model, "max_seq_length", None),
        "model_release_date": None,
        "url": None,
        **told,
    }
    write_submission(submission(results, mode, metadata), args.submission)
    print(f"the leaderboard's file, of mode {mode}, is {args.submission}", file=sys.stderr)
