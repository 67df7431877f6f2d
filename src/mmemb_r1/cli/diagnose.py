"""`mmemb-r1 diagnose`: does a checkpoint read its rationales?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.cli._options import add_source_options, atlas_split, listed

if TYPE_CHECKING:
    from mmemb_r1.evaluation.tasks import RetrievalTask


HELP = """\
The shortcut test: does a checkpoint read its rationales, or only write them? Every query thinks; then its rationale is
taken away, emptied, swapped for another query's and shuffled, and scores and vectors are compared.

Exit status: 0 if it reads them, 1 if it ignores them, 3 if that can't be told from these queries, 2 for an error.
Thresholds and what to make of them: docs/diagnose.md."""

STATUS = {"reads": 0, "ignores": 1, "undecided": 3}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="the checkpoint: a folder or a Hub id")
    source = add_source_options(parser)
    source.add_argument("--pairs", type=Path, metavar="FILE", help="a pairs table; a task's targets are candidates")
    parser.add_argument("--tasks", metavar="NAMES", help="comma-separated, of tasks or groups; default: all")
    parser.add_argument("--max-queries", type=int, metavar="N", help="of a task, drawn at random; default: all")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of swaps and draws; default: 0")
    parser.add_argument("--max-reasoning-tokens", type=int, metavar="N", help="default: the checkpoint's")
    parser.add_argument("--max-reasoning-rounds", type=int, metavar="N", help="default: the checkpoint's")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where shortcut.json and a row per query go, and a killed test goes on",
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument("--device", help="say cpu or cuda:1; default: the best one there is")


def run(args: argparse.Namespace) -> int:
    from mmemb_r1.cli._options import load_model, show_progress
    from mmemb_r1.evaluation.diagnose.run import diagnose
    from mmemb_r1.evaluation.diagnose.tester import ShortcutSettings
    from mmemb_r1.evaluation.diagnose.verdict import shortcut_table, verdict_line
    from mmemb_r1.evaluation.report.terminal import print_table
    from mmemb_r1.evaluation.summary import ALL

    if args.split and not args.atlas:
        raise ValueError("--split is for --atlas; leave it out")
    settings = ShortcutSettings(
        seed=args.seed,
        max_queries=args.max_queries,
        batch_size=args.batch_size,
        max_reasoning_tokens=args.max_reasoning_tokens,
        max_reasoning_rounds=args.max_reasoning_rounds,
    )
    bar = show_progress("mmemb_r1.evaluation")
    tasks, noted = tasks_of(args)
    name = Path(args.model).resolve().name
    results = diagnose(
        load_model(args.model, args.device),
        tasks,
        settings,
        output=args.output,
        config={"model": name, **noted},
        progress=bar,
    )
    print_table(shortcut_table(results))
    print(verdict_line(results, name))
    if args.output:
        print(f"figures in {args.output}", file=sys.stderr)
    return STATUS[results["summary"][ALL]["verdict"]]


def tasks_of(args: argparse.Namespace) -> tuple[Sequence[RetrievalTask], dict[str, Any]]:
    """The tasks that were asked for, and what to note of them."""
    if args.mmeb:
        from mmemb_r1.evaluation.mmeb import load_tasks

        return load_tasks(args.mmeb, None if args.tasks is None else listed(args.tasks)), {"dataset": "MMEB-V2"}
    if args.atlas:
        from mmemb_r1.evaluation.atlas_tasks import atlas_tasks

        atlas, split, data = atlas_split(args)
        tasks = atlas_tasks(atlas.pairs[split], atlas.candidates, data)
        return chosen_tasks(tasks, args.tasks), {"dataset": "Atlas", "split": split}
    if not args.pairs.is_file():
        raise ValueError(f"--pairs {args.pairs}: there is no such file")
    from mmemb_r1.evaluation.pair_tasks import pair_tasks
    from mmemb_r1.training.tables import PAIR_COLUMNS, read_pairs

    tasks = pair_tasks(read_pairs(args.pairs, PAIR_COLUMNS))
    return chosen_tasks(tasks, args.tasks), {"dataset": args.pairs.name}


def chosen_tasks(tasks: list[RetrievalTask], names: str | None) -> list[RetrievalTask]:
    """
    Those tasks that are named, or whose group is.

    Raises:
        ValueError: if a name is neither.
    """
    if names is None:
        return tasks
    from mmemb_r1.evaluation.summary import chosen

    wanted = chosen({task.name: task.groups for task in tasks}, listed(names))
    return [task for task in tasks if task.name in wanted]
