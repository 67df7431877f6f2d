"""`mmemb-r1 select`: keep the rationales that help (the posterior)."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.cli._options import (
    PAIRS_TABLE,
    add_row_options,
    add_settle_options,
    add_shard_options,
    check_table,
    pairs_options,
    pairs_told,
    parse_engine_options,
)
from mmemb_r1.cli._ray import add_ray_options, ray_options

if TYPE_CHECKING:
    from mmemb_r1.training.selection.config import SelectionOptions
    from mmemb_r1.training.selection.evaluator import PairEvaluator
    from mmemb_r1.training.selection.report import Report
    from mmemb_r1.training.settling.faults import SettleOptions


HELP = """\
Keep the rationales that help a query meet its target. An evaluator says how sure it is that a pair matches, and that
some wrong pairs do, with and without each rationale; the gain of one is what it adds for the pair, less what it adds
for wrong pairs.

The output is a folder: selected.parquet (what was kept, with its posterior weight), candidates.parquet (everything,
with its gain and why it was not kept), report.txt, report.json and report.png. The evaluator's answers are kept there
in shards: a run that was stopped goes on with the same command, also after rows were added or left out, and
--selection, --wrong-pair-correction, --space, --margin and --temperature can be changed without asking it again."""

KINDS = ("vlm", "embedding", "vllm")
LOG_FILE = "jobs.log"  # what the processes of `--jobs` print
TRIALS = 16  # inputs with all their rationales that the evaluator gets at once


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", required=True, type=Path, metavar="FILE", help=PAIRS_TABLE)
    add_row_options(parser)
    parser.add_argument(
        "--rationales", required=True, type=Path, metavar="DIR", help="what `mmemb-r1 rationales` or `import` wrote"
    )
    parser.add_argument(
        "--evaluator",
        required=True,
        metavar="DIR",
        help="the model that compares: a vision-language model or an mmemb-r1 checkpoint",
    )
    parser.add_argument(
        "--evaluator-kind",
        choices=KINDS,
        help="vlm answers yes or no, and vllm is the same run by vLLM; embedding compares vectors. Default: embedding "
        "for an mmemb-r1 checkpoint, else vlm",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where the selection goes")
    how = parser.add_argument_group("how to select")
    how.add_argument("--selection", metavar="NAME", help="none, absolute or counterfactual (the default)")
    how.add_argument(
        "--wrong-pair-correction",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="subtract what a rationale does for wrong pairs; default: yes",
    )
    for renamed in ("--pair-aware", "--no-pair-aware"):
        how.add_argument(renamed, nargs=0, action=_Renamed, help=argparse.SUPPRESS)
    how.add_argument("--space", metavar="NAME", help="of the gains: probability (the default) or log-odds")
    how.add_argument(
        "--margin",
        type=float,
        metavar="X",
        help="a gain has to be larger; default: 0 (0.5 for absolute selection without the wrong-pair correction)",
    )
    how.add_argument("--temperature", type=float, metavar="X", help="of the posterior; default: 0.1, in log-odds 1")
    _add_questions(
        parser.add_argument_group("what to ask the evaluator (after a change it is asked again, elsewhere)")
    )
    add_settle_options(parser.add_argument_group("pairs and rationales that are broken or too long"))
    _add_work(parser.add_argument_group("how to work"))
    add_ray_options(parser, "processes, each with the evaluator and its part of the shards")


def _add_questions(asked: argparse._ActionsContainer) -> None:
    asked.add_argument("--intervention", metavar="NAME", help="drop (the default), swap or shuffle")
    asked.add_argument(
        "--negatives", type=int, dest="num_negatives", metavar="N", help="wrong partners per pair; default: 4"
    )
    asked.add_argument("--seed", type=int, metavar="N", help="default: 0")
    asked.add_argument(
        "--prompt", metavar="FILE", help="of a vlm or vllm: how it is asked; default: its own or the usual one"
    )
    asked.add_argument(
        "--max-image-tokens",
        type=int,
        metavar="N",
        help="of a vlm or vllm: larger pictures are made smaller; default: never",
    )
    asked.add_argument(
        "--cosine-temperature", type=float, metavar="X", help="of an embedding evaluator; default: 0.02"
    )
    asked.add_argument(
        "--cosine-bias", type=float, metavar="X", help="of an embedding evaluator: where it is undecided; default: 0.5"
    )
    asked.add_argument(
        "--early-stop",
        action="store_true",
        help="ask about wrong pairs only for rationales that help their own pair; what is kept stays the same. For "
        "counterfactual selection, the intervention drop and a margin of 0 or more",
    )


def _add_work(work: argparse._ActionsContainer) -> None:
    work.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="pairs (of a vlm; default: 16; of a vllm: 256) or inputs (of an embedding evaluator; default: 32) that "
        "are read at once",
    )
    add_shard_options(work)
    work.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="processes of one thread each, on a CPU; default: 1"
    )
    work.add_argument("--device", help="say cpu or cuda:1; default: the best one there is; of a vllm, vLLM chooses")
    work.add_argument(
        "--engine-options",
        nargs="+",
        metavar="NAME=VALUE",
        help="of a vllm: options of vLLM's LLM, say tensor_parallel_size=2 max_model_len=8192",
    )


class _Renamed(argparse.Action):
    """Refuse an option under its old name."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        new = self.option_strings[0].replace("pair-aware", "wrong-pair-correction")
        parser.error(f"{self.option_strings[0]} is called {new} now")


def run(args: argparse.Namespace) -> int:
    check_table("--pairs", args.pairs)
    if args.batch_size is not None and args.batch_size < 1:
        raise ValueError(f"--batch-size {args.batch_size}; allowed: 1 or more")
    if args.jobs < 1 or (args.jobs > 1 and args.part != (1, 1)):
        raise ValueError(f"--jobs {args.jobs}; allowed: 1 or more, and together with --part 1 alone")
    on_ray = ray_options(args)
    if on_ray is not None and (args.jobs > 1 or args.part != (1, 1) or args.device is not None):
        raise ValueError("--jobs, --part and --device are for work without Ray; leave them out with --ray")

    from mmemb_r1.training.rationales.table import read_rationales
    from mmemb_r1.training.selection.config import SelectionOptions
    from mmemb_r1.training.settling.faults import SettleOptions
    from mmemb_r1.training.tables import PAIR_COLUMNS, read_pairs

    options = SelectionOptions(**_given(args, {field.name: field.name for field in fields(SelectionOptions)}))
    settling = SettleOptions(**_given(args, {field.name: field.name for field in fields(SettleOptions)}))
    if on_ray is not None:
        _tell(args, _selected_on_ray(args, options, settling, on_ray))
        return 0
    pairs = read_pairs(args.pairs, PAIR_COLUMNS, **pairs_options(args))
    rationales = read_rationales(args.rationales)

    from mmemb_r1.training.selection.select import checked_tables, select_rationales

    evaluator = _load_evaluator(args)
    if args.jobs > 1:
        checked_tables(pairs, rationales, evaluator, settling)  # once, not in each of the processes
        _score_in_processes(args)
    report = select_rationales(
        pairs,
        rationales,
        evaluator,
        args.output,
        options,
        batch_size=args.batch_size or TRIALS,
        shard_size=args.shard_size,
        part=args.part,
        settling=settling,
    )
    if report is None:
        print("this part is done; when all parts are, run the same command once more, without --part, to select")
        return 0
    _tell(args, report)
    return 0


def _tell(args: argparse.Namespace, report: Report) -> None:
    from mmemb_r1.training.selection.report import report_text
    from mmemb_r1.training.selection.table import SELECTED

    print(report_text(report))
    print(f"the selection is in {args.output}; train with it:")
    print(f"mmemb-r1 train joint --model DIR {pairs_told(args)} --rationales {args.output / SELECTED} --output DIR")


def _selected_on_ray(
    args: argparse.Namespace, options: SelectionOptions, settling: SettleOptions, on_ray: dict[str, Any]
) -> Report:
    from mmemb_r1.ray import select_rationales

    kind, told = _evaluator_options(args)
    return select_rationales(
        args.pairs,
        args.rationales,
        args.evaluator,
        args.output,
        options,
        read=pairs_options(args),
        kind=kind,
        evaluator_options=told,
        batch_size=args.batch_size or TRIALS,
        shard_size=args.shard_size,
        settling=settling,
        **on_ray,
    )


def _score_in_processes(args: argparse.Namespace) -> None:
    """Let processes of one thread ask the evaluator, each for its part: a small model gains nothing by more."""
    from concurrent.futures import FIRST_EXCEPTION, wait

    from mmemb_r1.processes import process_pool
    from mmemb_r1.progress import progress_bar

    args.output.mkdir(parents=True, exist_ok=True)
    before = _num_shards(args.output)
    asked = [{**vars(args), "jobs": 1, "part": (number, args.jobs)} for number in range(1, args.jobs + 1)]
    with process_pool(args.jobs, 1, args.output / LOG_FILE) as pool, progress_bar() as bar:
        waiting = {pool.submit(run, argparse.Namespace(**options)) for options in asked}
        shown = bar.add_task("shards of scores", total=None)
        while waiting:
            done, waiting = wait(waiting, timeout=1, return_when=FIRST_EXCEPTION)
            for one in done:
                one.result()
            bar.update(shown, completed=_num_shards(args.output) - before)


def _num_shards(output: Path) -> int:
    return len(list((output / "shards").glob("*/*.parquet")))


_OWN = {  # options of the kinds of evaluators: option -> field
    "vlm": {"prompt": "prompt", "max_image_tokens": "max_image_tokens", "device": "device"},
    "embedding": {"cosine_temperature": "temperature", "cosine_bias": "bias", "device": "device"},
    "vllm": {"prompt": "prompt", "max_image_tokens": "max_image_tokens", "engine_options": "engine"},
}


def _load_evaluator(args: argparse.Namespace) -> PairEvaluator:
    from mmemb_r1.training.selection.evaluator import load_evaluator

    kind, options = _evaluator_options(args)
    return load_evaluator(args.evaluator, kind, **options)


def _evaluator_options(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Tell the kind and options of the evaluator. ValueError if an option belongs to another kind."""
    from mmemb_r1.training.selection.evaluator import evaluator_kind

    kind = args.evaluator_kind or evaluator_kind(args.evaluator)
    for option in {option for names in _OWN.values() for option in names} - _OWN[kind].keys():
        if getattr(args, option) is not None:
            raise ValueError(
                f"--{option.replace('_', '-')} is no option of the evaluator kind {kind!r}; leave it out, or choose "
                "another --evaluator-kind"
            )
    if kind == "vllm" and args.jobs > 1:
        raise ValueError(f"--jobs {args.jobs} is for models on a CPU; vLLM divides its work itself, leave it out")
    options = _given(args, {**_OWN[kind], "batch_size": "batch_size"})
    if "engine" in options:
        options["engine"] = parse_engine_options(options["engine"])
    return kind, {**options, "early_stop": args.early_stop}


def _given(args: argparse.Namespace, names: dict[str, str]) -> dict[str, Any]:
    """Map options (option -> field) to the fields that the command line sets."""
    return {field: getattr(args, option) for option, field in names.items() if getattr(args, option) is not None}
