"""`mmemb-r1 evaluate`: measure a model on Atlas, MMEB-V2, a pairs table or tasks of one's own."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.cli._options import (
    add_encoding_options,
    add_engine_options,
    add_source_options,
    add_thinker_options,
    asked_source,
    engine_given,
    listed,
    model_name,
    use_thinker,
)
from mmemb_r1.evaluation.settings import LOOKING, MODES, QUERY_MODES, SAME, default_modes, mode_pairs

if TYPE_CHECKING:
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
OF_SUBMISSION = ("submission", "submission_mode", "submission_metadata")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a folder or a Hub id")
    add_source_options(parser)
    parser.add_argument(
        "--download",
        action="store_true",
        help="first fetch the tasks of MMEB from the Hub into its folder, without --tasks all 78; what is there stays",
    )
    parser.add_argument(
        "--modes",
        help=f"comma-separated; default: {','.join(MODES)}, where the checkpoint has a second look also "
        f"{','.join(LOOKING)}, and of other models never",
    )
    parser.add_argument("--output", type=Path, metavar="RUN", help="a folder, or a file that ends in .json")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of what is printed; default: table")
    parser.add_argument(
        "--document-reasoning",
        metavar="MODES",
        help="of candidates, or same: as their query; several, comma-separated, are each measured with every mode; "
        "default: never, of models with two spaces same",
    )
    parser.add_argument("--rationales", action="store_true", help="keep rationales, in rows of --output RUN/")
    parser.add_argument(
        "--cache", metavar="DIR", help="keep vectors here, for other runs too; default: cache in --output RUN/"
    )
    parser.add_argument(
        "--num-frames", type=int, metavar="N", help="of a video of MMEB; default: 8, of MomentSeeker all"
    )
    parser.add_argument(
        "--instructions", choices=("task", "none"), help="of MMEB's inputs: none for the model's own; default: task"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N queries of each task, for a quick look")
    parser.add_argument("--submission", type=Path, metavar="FILE", help="write the file that MMEB's leaderboard takes")
    parser.add_argument(
        "--submission-mode", metavar="MODE", help="whose scores it has, say auto; needed where several modes are run"
    )
    parser.add_argument("--submission-metadata", type=Path, metavar="FILE", help="JSON: what it says of the model")
    add_thinker_options(parser)
    add_engine_options(parser)
    thinking = dict.fromkeys(("gate_threshold", "max_reasoning_tokens", "max_reasoning_rounds"))
    add_encoding_options(parser, **thinking, batch_size=64)
    parser.add_argument("--trust-remote-code", action="store_true", help="run code of another model's repository")


def run(args: argparse.Namespace) -> int:
    modes = None if args.modes is None else listed(args.modes)
    documents = None if args.document_reasoning is None else listed(args.document_reasoning)
    for option, asked, known in (("--modes", modes, QUERY_MODES), ("--document-reasoning", documents, (*MODES, SAME))):
        if unknown := [mode for mode in asked or () if mode not in known]:
            raise ValueError(
                f"{option} {','.join(asked or ())}: {unknown[0]!r} is not known; allowed: {', '.join(known)}"
            )
    _check(args)
    told = _check_submission(args, modes and list(mode_pairs(modes, documents or ("never",))))

    from mmemb_r1.cli._options import load_model
    from mmemb_r1.evaluation import Settings, run_evaluation, save_results

    source = _source(args)
    model = load_model(args.model, args.device, args.trust_remote_code, **engine_given(args))
    use_thinker(model, args)
    name = model_name(args.model)
    settings = Settings(
        modes=modes or default_modes(model),
        document_reasoning=documents[0] if documents and len(documents) == 1 else documents,
        batch_size=args.batch_size,
        gate_threshold=args.gate_threshold,
        max_reasoning_tokens=args.max_reasoning_tokens,
        max_reasoning_rounds=args.max_reasoning_rounds,
        rationales=args.rationales,
        no_image=args.atlas is not None,
    )
    if args.submission:
        submitted = _submitted_mode(args.submission_mode, list(settings.pairs)), metadata_of(model, name, told)
    folder = args.output if args.output and args.output.suffix != ".json" else None
    noted = _noted(args.model)
    results = run_evaluation(model, source, settings, output=folder, cache=args.cache, config=noted)
    if args.output and folder is None:
        save_results(results, args.output)
    _show(results, args.format)
    if args.submission:
        submit(results, *submitted, args.submission)
    print(_next_step(args, folder), file=sys.stderr)
    return 0


def _noted(model: str) -> dict[str, Any]:
    """Note the model's name and, of a folder, its content, for the model card."""
    from mmemb_r1.evaluation.run_folder import MEASURED_FILES
    from mmemb_r1.fingerprint import folder_digest

    path = Path(model)
    return {"model": model_name(model)} | ({MEASURED_FILES: folder_digest(path)} if path.is_dir() else {})


def _check(args: argparse.Namespace) -> None:
    """Refuse options that would do nothing."""
    of_mmeb = {
        "--download": args.download or None,
        "--num-frames": args.num_frames,
        "--instructions": args.instructions,
        **{f"--{option.replace('_', '-')}": getattr(args, option) for option in OF_SUBMISSION},
    }
    for option, value in of_mmeb.items():
        if value is not None and not args.mmeb:
            raise ValueError(f"{option} is for --mmeb; leave it out")
    if args.rationales and (args.output is None or args.output.suffix == ".json"):
        raise ValueError("--rationales are kept in the rows of a run's folder; name one: --output RUN/")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit {args.limit}: at least 1 is needed")


def _check_submission(args: argparse.Namespace, modes: Sequence[str] | None) -> dict[str, Any]:
    """Refuse options that no submission comes of, before the model is loaded. Returns the metadata that were given."""
    if args.submission is None:
        for option in OF_SUBMISSION:
            if getattr(args, option) is not None:
                raise ValueError(f"--{option.replace('_', '-')} is of the file that --submission FILE writes; name it")
        return {}
    if args.limit is not None:
        raise ValueError("--submission takes all queries of all tasks; leave --limit out")
    if args.submission.is_dir():
        raise ValueError(f"--submission {args.submission} is a folder; name a file")
    if modes is not None:
        _submitted_mode(args.submission_mode, modes)
    if args.submission_metadata is None:
        return {}

    from mmemb_r1.evaluation.mmeb.submission import check_metadata

    try:
        told = json.loads(args.submission_metadata.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--submission-metadata {args.submission_metadata} is no JSON ({error})") from error
    if not isinstance(told, dict):
        raise ValueError(
            f"--submission-metadata {args.submission_metadata} holds a {type(told).__name__}; expected an object"
        )
    check_metadata(told)
    return told


def _submitted_mode(asked: str | None, modes: Sequence[str]) -> str:
    """Choose the mode whose scores are submitted: the one that was asked for, or the only one."""
    if asked is None and len(modes) > 1:
        raise ValueError(f"--submission has the scores of one mode; choose it: --submission-mode {' or '.join(modes)}")
    if asked is not None and asked not in modes:
        raise ValueError(f"--submission-mode {asked}: that mode is not run; it would be {', '.join(modes)}")
    return asked or modes[0]


def metadata_of(model: Any, name: str, told: dict[str, Any]) -> dict[str, Any]:
    """Say in a submission what was told of a model, and for the rest what the model tells itself."""
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


def _source(args: argparse.Namespace) -> TaskSource:
    """Read the tasks, after a download where one is asked for; a submission needs all tasks of MMEB-V2."""
    if not args.mmeb:
        return asked_source(args, limit=args.limit)
    from mmemb_r1.evaluation.mmeb import check_tasks, download_task, select

    tasks = select(args.tasks)
    if args.submission and args.tasks is not None:
        check_tasks([task.name for task in tasks])
    for number, task in enumerate(tasks if args.download else (), start=1):
        print(f"downloading {task.name} ({number} of {len(tasks)}) into {args.mmeb}", file=sys.stderr)
        download_task(task.name, args.mmeb)
    source = asked_source(args, limit=args.limit, num_frames=args.num_frames, instructions=args.instructions)
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
