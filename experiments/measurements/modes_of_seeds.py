"""
What are the modes worth, over several seeds? Reads what `mmemb-r1 evaluate` wrote for a model of each seed.

    python -m experiments.measurements.modes_of_seeds RUN ... [--against RUN ...] [--output results.json]

For all tasks, those of before (neither perceptual nor mixed) and each kind: the score of every mode and what it is
above the better of never and always, with 95 % intervals by country or object; the share of the head-room (always the
better of both vectors, minus the better fixed mode) that it captures; its share of always' tokens; and how often it
thinks in tasks where always gains at most a point (`little`) or at least 20 (`much`). Means over tasks, each with the
queries of all seeds. `--against` names as many runs, of the same seeds: the difference of each mode to theirs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from mmemb_r1.evaluation.invocation import Answers, invocation_by_gain, oracle
from mmemb_r1.evaluation.run_folder import load_results, read_query_rows, rows_path
from mmemb_r1.evaluation.statistics import clustered_bootstrap
from mmemb_r1.runs import write_json

Columns = dict[str, npt.NDArray[Any]]
LATER = ("perceptual", "mixed")  # kinds that Atlas has had since


def read_runs(runs: Sequence[Path]) -> Columns:
    """Read the queries of all runs: task, cluster, complexity, and of each mode its score, tokens and `reasoned`."""
    found: list[Columns] = []
    for place, run in enumerate(runs):
        tasks = load_results(run / "results.json")["tasks"]
        for task, facts in tasks.items():
            modes = {mode: read_query_rows(rows_path(run, task, mode)) for mode in facts["modes"]}
            first = next(iter(modes.values()))
            if any(rows["query_id"].tolist() != first["query_id"].tolist() for rows in modes.values()):
                raise SystemExit(f"{run}: the modes of the task {task} have other queries; evaluate it anew.")
            number = len(first["query_id"])
            columns = {"task": np.full(number, task), "complexity": np.full(number, facts["complexity"])}
            columns |= {"cluster": first["cluster"], "query": first["query_id"], "run": np.full(number, place)}
            for mode, rows in modes.items():
                columns |= {mode: rows["score"], f"{mode} tokens": rows["num_reasoning_tokens"]}
                columns[f"{mode} thinks"] = rows["reasoned"]
            found.append(columns)
    common = [name for name in found[0] if all(name in columns for columns in found)]
    return {name: np.concatenate([columns[name] for columns in found]) for name in common}


def modes_of(columns: Mapping[str, npt.NDArray[Any]]) -> list[str]:
    """The modes, in the order of the runs."""
    return [name.removesuffix(" thinks") for name in columns if name.endswith(" thinks")]


def kinds_of(columns: Columns) -> dict[str, npt.NDArray[np.bool_]]:
    """Name the groups of queries that are reported, `(N,)` each."""
    kind = columns["complexity"]
    groups = {"all": np.ones(len(kind), dtype=bool), "before": ~np.isin(kind, LATER)}
    return groups | {name: kind == name for name in dict.fromkeys(kind.tolist())}


def worth(columns: Columns) -> dict[str, dict[str, Any]]:
    """Compute, for each mode, what the module's text says."""
    never, always, task = columns["never"], columns["always"], columns["task"]
    cluster = columns["cluster"].tolist()

    def mean(values: npt.NDArray[Any]) -> list[float]:
        return list(clustered_bootstrap(values.astype(float), cluster, task.tolist()))

    answers = Answers(task, columns["cluster"], never, always, columns["always tokens"])
    fixed = max((never, always), key=lambda values: mean(values)[0])
    headroom = mean(oracle(answers) - fixed)[0]
    every = mean(columns["always tokens"])[0]
    found: dict[str, dict[str, Any]] = {"oracle": {"score": mean(oracle(answers))}}
    for mode in modes_of(columns):
        gain = mean(columns[mode] - fixed)
        found[mode] = {
            "score": mean(columns[mode]),
            "over the better fixed": gain,
            "captured": gain[0] / headroom if headroom else None,
            "tokens": mean(columns[f"{mode} tokens"])[0] / every if every else None,
            **invocation_by_gain(answers, columns[f"{mode} thinks"].astype(bool)),
        }
    return found


def differences(columns: Columns, others: Columns) -> dict[str, list[float]]:
    """Compare each mode with that of other runs, query by query."""
    named, asked = (
        list(zip(*(table[name].tolist() for name in ("run", "task", "query")), strict=True))
        for table in (others, columns)
    )
    place = {query: row for row, query in enumerate(named)}
    rows = np.array([place[query] for query in asked])
    tasks, clusters = columns["task"].tolist(), columns["cluster"].tolist()
    return {
        mode: list(clustered_bootstrap(columns[mode] - others[mode][rows], clusters, tasks))
        for mode in modes_of(columns)
        if mode in others
    }


def only(columns: Columns, where: npt.NDArray[np.bool_]) -> Columns:
    return {name: values[where] for name, values in columns.items()}


def points(values: Sequence[float]) -> str:
    """
    >>> points([0.0123, -0.001, 0.02])
    '+1.2 [-0.1, 2.0]'
    """
    return f"{100 * values[0]:+.1f} [{100 * values[1]:.1f}, {100 * values[2]:.1f}]"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def table_of(kind: str, number: int, found: Mapping[str, Mapping[str, Any]]) -> Table:
    names = ("over the better fixed", "captured", "tokens", "little", "much")
    table = Table("mode", "score", *names, title=f"{kind}: {number:,} queries")
    for mode, row in found.items():
        score = f"{row['score'][0]:.3f} [{row['score'][1]:.3f}, {row['score'][2]:.3f}]"
        if mode == "oracle":
            table.add_row(mode, score)
        else:
            table.add_row(mode, score, points(row[names[0]]), *(share(row[name]) for name in names[1:]))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of `mmemb-r1 evaluate`, one per seed")
    parser.add_argument("--against", type=Path, nargs="+", default=[], help="as many others, of the same seeds")
    parser.add_argument("--output", type=Path, help="JSON")
    args = parser.parse_args()
    if args.against and len(args.against) != len(args.runs):
        parser.error(f"{len(args.runs)} runs and {len(args.against)} to compare with: give as many of each")
    columns, console = read_runs(args.runs), Console(width=140)
    others = read_runs(args.against) if args.against else None
    results: dict[str, Any] = {}
    for kind, where in kinds_of(columns).items():
        part = only(columns, where)
        results[kind] = {"modes": worth(part)}
        console.print(table_of(kind, int(where.sum()), results[kind]["modes"]))
        if others is not None:
            results[kind]["against"] = differences(part, others)
            console.print({mode: points(values) for mode, values in results[kind]["against"].items()})
    if args.output:
        write_json(args.output, results)


if __name__ == "__main__":
    main()
