"""
Does the gate think longer where a question takes more steps? The adaptive phase with up to three rationales per query,
from a model that learnt chains (the arm `depth` of `joint_phase.py`) and whose gate knows nothing.

    python -m experiments.measurements.joint_phase --arms depth --seeds 0 --stages warm-up joint
    python -m experiments.measurements.adaptive_depth [--joint runs/joint] [--output runs/depth] [--seeds 0]
        [--steps 150]

Of each test query: how many rationales the gate asks for (`reasoning="auto"`), and whether the target comes first
after none, after as many as the gate asks for, and after all that may be. By the steps that a question takes: names of
flags one, facts of flags two, facts of their neighbours three. Writes `results-{split}.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.measurements.adaptive_phase import train_seed
from experiments.measurements.outcome_summary import Columns, joined
from experiments.pipeline.grpo import GRPO_FIELDS, GRPO_STEPS
from experiments.pipeline.outcomes import BATCH_SIZE, PLAIN, hits, vectors_of, whose
from experiments.pipeline.tasks import FLAGS, NEIGHBOURS, of_tasks
from mmemb_r1 import MMEmbR1
from mmemb_r1.atlas import Atlas, load_atlas
from mmemb_r1.content import inputs_of
from mmemb_r1.evaluation.atlas_tasks import embed_candidates
from mmemb_r1.evaluation.statistics import clustered_bootstrap
from mmemb_r1.runs import replaced_file, write_json

ROUNDS, STEPS = 3, GRPO_STEPS
HOPS = {"picture-name-flag": 1, **dict.fromkeys(FLAGS, 2), **dict.fromkeys(NEIGHBOURS, 3)}
FIELDS = {**GRPO_FIELDS, "gate_learning_rate": 1e-2, "min_decision_prob": 0.1}  # the gate starts at "never"


def train(atlas: Atlas, start: Path, output: Path, seed: int, steps: int, fields: dict[str, Any]) -> Path:
    """The adaptive phase of one seed: its folder."""
    pairs, facts = of_tasks(atlas.pairs["policy"], HOPS), {"atlas": atlas.manifest["fingerprint"]}
    return train_seed(output, seed, start, pairs, atlas.pairs["train"], steps, fields, facts, rounds=ROUNDS)


def measure(atlas: Atlas, checkpoint: Path, path: Path, split: str) -> Columns:
    """A row per test query: `rounds` of auto, and whether the target came first, per mode. Kept in a file."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    model = MMEmbR1(str(checkpoint), device="cpu")
    pairs = of_tasks(atlas.pairs[split], HOPS)
    sets = embed_candidates(model, atlas.candidates, set(pairs["candidate_set"]), BATCH_SIZE)
    columns = whose(pairs)
    for mode in ("never", "auto", "always"):
        explained = model.explain(inputs_of(pairs["query"]), reasoning=mode, max_reasoning_rounds=ROUNDS, **PLAIN)
        columns[mode] = hits(pairs, vectors_of(explained), sets)
        if mode == "auto":
            columns["rounds"] = [one["num_reasoning_rounds"] for one in explained]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as temporary:
        temporary.write_text(json.dumps(columns) + "\n", encoding="utf-8")
    return columns


def summarise(tables: list[Columns]) -> dict[str, Any]:
    """Hops -> means over tasks of each column, with intervals clustered by country; and three hops minus one."""
    rows = joined(tables)
    tasks, entities = rows["task"], rows["entity"]
    hops = np.array([HOPS[task] for task in tasks.tolist()])
    result: dict[str, Any] = {}
    for number in sorted(set(hops.tolist())):
        where = hops == number
        result[str(number)] = {"queries": int(where.sum())} | {
            name: clustered_bootstrap(rows[name][where], entities[where].tolist(), tasks[where].tolist())
            for name in ("rounds", "never", "auto", "always")
        }
    result["deeper"] = deeper(rows["rounds"].astype(float), hops, entities)
    return result


def deeper(rounds: np.ndarray, hops: np.ndarray, entities: np.ndarray) -> Any:
    """Rationales of three-step questions minus those of one-step questions, of countries that have both."""
    both = [
        (rounds[(entities == one) & (hops == 3)].mean() - rounds[(entities == one) & (hops == 1)].mean(), one)
        for one in sorted(set(entities[hops == 3]) & set(entities[hops == 1]))
    ]
    return clustered_bootstrap([difference for difference, _ in both], [one for _, one in both])


def table(title: str, summary: dict[str, Any]) -> Table:
    shown = Table(title=title)
    for name in ("steps", "queries", "rationales (auto)", "R@1 never", "R@1 auto", "R@1 always"):
        shown.add_column(name, justify="right")
    for number, numbers in summary.items():
        if number == "deeper":
            continue
        cells = [f"{v.mean:.2f} [{v.low:.2f}, {v.high:.2f}]" for v in list(numbers.values())[1:]]
        shown.add_row(number, str(numbers["queries"]), *cells)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joint", type=Path, default=Path("runs/joint"), help="the experiment of joint_phase.py")
    parser.add_argument("--output", type=Path, default=Path("runs/depth"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--split", default="test")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of AdaptiveGRPOConfig")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    fields = FIELDS | {name: json.loads(value) for name, value in (one.split("=", 1) for one in args.set)}
    atlas, tables = load_atlas(args.joint / "atlas"), {"before": [], "after": []}
    args.output.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        start = args.joint / "arms" / f"depth-{seed}"
        trained = train(atlas, start, args.output, seed, args.steps, fields)
        for name, checkpoint in (("before", start), ("after", trained)):
            path = args.output / "evaluations" / f"{name}-{seed}-{args.split}.json"
            tables[name].append(measure(atlas, checkpoint, path, args.split))
    console, results = Console(width=132), {}
    for name, measured in tables.items():
        results[name] = summary = summarise(measured)
        console.print(table(f"{name}, seeds {args.seeds}, {args.split} split: means over tasks", summary))
        more = summary["deeper"]
        console.print(f"rationales, three steps minus one: {more.mean:+.2f} [{more.low:+.2f}, {more.high:+.2f}]")
    write_json(args.output / f"results-{args.split}.json", results)


if __name__ == "__main__":
    main()
