"""
Does GRPO teach when to think? A model after the joint phase, whose gate knows nothing (`--gate fresh`) or was fitted
by supervision on the same pairs (`--gate warm`), before and after the adaptive phase, on countries and renderings that
none of them has seen.

    python -m experiments.measurements.adaptive_phase [--output runs/adaptive] [--seeds 0 1 2]
        [--stages start grpo evaluation ...] [--steps 150] [--split test]

1. *start*: an Atlas and a model per seed, trained from nothing on the rationales of its pairs. 2. *grpo* on the
`policy` split; targets of the `train` split are negatives too. 3. *evaluation* of both, live on both sides.
4. *report*: tables on the screen, `results-{split}.json`, `curve-{split}.csv` and `curve-{split}.png` in --output.

What is done already is not done again, and a killed run goes on. Seeds can run at the same time, each with
`OMP_NUM_THREADS=1`. What is reported at a threshold is at the config's, 0.5: nothing is tuned on the test split.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import matplotlib
from datasets import Dataset
from rich.console import Console
from rich.table import Table

from experiments.measurements.outcome_summary import (
    by_task,
    curve,
    gate_quality,
    interior,
    joined,
    outcomes_in,
    read_outcomes,
    summarise,
)
from experiments.pipeline.gate import fit_gate_of
from experiments.pipeline.grpo import GRPO_FIELDS, GRPO_STEPS, train_adaptive
from experiments.pipeline.joint import train_from_nothing
from experiments.pipeline.recipe import Recipe
from experiments.pipeline.tasks import at_most
from mmemb_r1.atlas import build_atlas, load_atlas
from mmemb_r1.runs import made_whole, record_run, replaced_file, write_json

STAGES = ("start", "grpo", "evaluation", "report")
GATES = {"fresh": "trained", "warm": "model"}  # the folder of a start that holds such a model
ROWS_PER_TASK = 60  # of the policy split: digits and comparisons would be two thirds of it


def start(output: Path, seed: int) -> None:
    """An Atlas and a model of it, before and after its gate's warm start on the `policy` split."""
    recipe, folder = Recipe(seed=seed), output / f"start-{seed}"
    atlas = build_atlas(folder / "atlas", seed=seed, **recipe.atlas)
    trained, policy = folder / "trained", atlas.pairs["policy"]
    made_whole(trained, lambda made: train_from_nothing(atlas, recipe, made, folder / "checkpoints"))
    made_whole(folder / "model", lambda made: fit_gate_of(trained, policy, atlas.candidates, made))


def train_seed(
    output: Path,
    seed: int,
    start: Path,
    pairs: Dataset,
    joint_pairs: Dataset,
    steps: int,
    fields: Mapping[str, Any],
    facts: Mapping[str, Any],
    rounds: int | None = None,
) -> Path:
    """
    Train, and save in `output / "grpo-{seed}"`. A killed run goes on.

    Args:
        output: the experiment's folder.
        seed: of the run.
        start: the checkpoint to start from.
        pairs: whose queries are asked.
        joint_pairs: their targets are negatives too.
        steps: optimiser steps.
        fields: of `AdaptiveGRPOConfig`.
        facts: what makes this run another one, besides `fields` and `steps`.
        rounds: rationales per query at most, also of the model that is saved. Default: as the checkpoint says.

    Returns:
        The folder.
    """
    folder, checkpoints = output / f"grpo-{seed}", output / "checkpoints" / f"grpo-{seed}"
    record_run(output / f"grpo-{seed}.json", {**fields, "steps": steps, **facts})
    settings = {**fields, "max_steps": steps, "seed": seed}
    made_whole(
        folder, lambda made: train_adaptive(start, pairs, joint_pairs, settings, made, checkpoints, rounds=rounds)
    )
    return folder


def grpo(output: Path, seed: int, gate: str, steps: int, fields: dict[str, Any]) -> None:
    """The adaptive phase of one seed."""
    folder = output / f"start-{seed}"
    atlas = load_atlas(folder / "atlas")
    facts = {"gate": gate, "atlas": atlas.manifest["fingerprint"]}
    pairs, joint_pairs = at_most(atlas.pairs["policy"], ROWS_PER_TASK), atlas.pairs["train"]
    train_seed(output, seed, folder / GATES[gate], pairs, joint_pairs, steps, fields, facts)


def report(output: Path, seeds: list[int], split: str, console: Console) -> None:
    """Tables, JSON, and the curve of invocation."""

    def answers(name: str, seed: int) -> Any:
        return read_outcomes(output / "evaluations" / f"{name}-{seed}-{split}")

    results: dict[str, Any] = {"seeds": seeds, "split": split}
    for name in ("start", "grpo"):
        tables = [answers(name, seed) for seed in seeds]
        rows = joined(tables)
        results[name] = {
            "summary": summarise(rows, 0.5),
            "by_seed": [summarise(joined([table]), 0.5)["all"] for table in tables],
            "tasks": by_task(rows, 0.5),
            "gate": gate_quality(rows),
            "curve": curve(rows),
        }
        results[name]["interior"] = interior(rows, results[name]["curve"])
        for table in tables_of(name, results[name]):
            console.print(table)
        console.print(f"gate: {results[name]['gate']}; best point of the curve: {results[name]['interior']}")
    write_json(output / f"results-{split}.json", results)
    points = [
        {"model": name, "dataset": "Atlas", "split": split, "queries": summary["summary"]["all"]["queries"], **point}
        for name, summary in ((name, results[name]) for name in ("start", "grpo"))
        for point in summary["curve"]
    ]
    with replaced_file(output / f"curve-{split}.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, points[0])
        writer.writeheader()
        writer.writerows(points)
    draw(results, output / f"curve-{split}.png")


def tables_of(name: str, result: dict[str, Any]) -> list[Table]:
    """The summary and the tasks as tables."""
    modes = ("never", "always", "auto", "oracle", "gain", "invocation", "tokens", "tokens_always")
    whole = Table("", "queries", *modes, "headroom", "captured", title=name)
    for part, row in result["summary"].items():
        cells = [f"{row[mode][0]:.3f} [{row[mode][1]:.3f}, {row[mode][2]:.3f}]" for mode in modes]
        captured = "-" if row["captured"] is None else f"{row['captured']:.0%}"
        whole.add_row(part, str(row["queries"]), *cells, f"{row['headroom']:.3f}", captured)
    tasks = Table("task", *(columns := list(next(iter(result["tasks"].values())))))
    for task, row in result["tasks"].items():
        tasks.add_row(task, *(f"{row[column]:.3g}" for column in columns))
    return [whole, tasks]


def draw(results: dict[str, Any], path: Path) -> None:
    """R@1 against the share of queries that think."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), constrained_layout=True)
    for name, label, color in (("start", "gate before GRPO", "#999999"), ("grpo", "gate after GRPO", "#1f6fb4")):
        points = results[name]["curve"]
        share = [100 * point["invocation"] for point in points]
        axes.fill_between(share, [p["low"] for p in points], [p["high"] for p in points], color=color, alpha=0.15)
        axes.plot(share, [point["r1"] for point in points], color=color, marker="o", markersize=3, label=label)
        summary = results[name]["summary"]["all"]
        axes.axhline(summary["oracle"][0], color=color, linestyle=":", linewidth=1)
    axes.set(xlabel="queries that think, %", ylabel="R@1, mean over tasks", xlim=(0, 100))
    axes.set_title("Dotted: the better of both vectors for each query", fontsize=9)
    axes.legend(loc="lower right", frameon=False)
    with replaced_file(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/adaptive"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--gate", choices=GATES, default="warm", help="what GRPO starts from")
    parser.add_argument("--steps", type=int, default=GRPO_STEPS)
    parser.add_argument("--split", default="test", help="that is evaluated")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of AdaptiveGRPOConfig")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    fields = GRPO_FIELDS | {name: json.loads(value) for name, value in (one.split("=", 1) for one in args.set)}
    for seed in args.seeds:
        if "start" in args.stages:
            start(args.output, seed)
        if "grpo" in args.stages:
            grpo(args.output, seed, args.gate, args.steps, fields)
        if "evaluation" in args.stages:
            folder = args.output / f"start-{seed}"
            atlas = load_atlas(folder / "atlas")
            for name, checkpoint in (("start", folder / GATES[args.gate]), ("grpo", args.output / f"grpo-{seed}")):
                answers = args.output / "evaluations" / f"{name}-{seed}-{args.split}"
                outcomes_in(checkpoint, atlas.pairs[args.split], atlas.candidates, answers)
    if "report" in args.stages:
        report(args.output, args.seeds, args.split, Console(width=200))


if __name__ == "__main__":
    main()
