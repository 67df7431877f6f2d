"""
How well can anything that reads the state at `<|embed|>` predict whether thinking pays? Classifiers of several kinds
are fitted on the `policy` split, where a model's utility gap was measured, and evaluated on the test split.

    python -m experiments.measurements.gate_limits [--start runs/adaptive/start-0 ...] [--output runs/gate-limits]

`--start` names folders of `adaptive_phase.py --stages start` (or of the quickstart, whose gate GRPO has taught since).
Printed per classifier: the AUC against the sign of the gap where that is at least 0.1 in size; and for those that are
gates, R@1 when they decide, as a share of the way from the better fixed mode to the oracle of both, and on how many
simple and multi-hop queries they think. `wording` reads something else than the state: the mean of the prompt's word
embeddings. `task` knows which task a query is of: how often thinking paid there, or which mode was better there, on
`policy` or on the test split itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from experiments.measurements.outcome_summary import joined, outcomes_in
from mmemb_r1 import MMEmbR1
from mmemb_r1.atlas import Atlas, load_atlas
from mmemb_r1.content import inputs_of
from mmemb_r1.evaluation.invocation import LEAST_GAP, auc
from mmemb_r1.modeling.gate_inputs_mmemb_r1 import mean_words
from mmemb_r1.training.gate import fit_gate
from mmemb_r1.training.gate_decisions import read_by_gate

Rows = npt.NDArray[np.float64]
SPLITS = ("policy", "test")


def measured(start: Path, output: Path) -> dict[str, npt.NDArray]:
    """Columns of both splits, such as `policy/gap`, with the states `(N, H)` that a gate reads. Kept in a file."""
    path = output / f"{start.resolve().name}.npz"
    if not path.exists():
        atlas, model = load_atlas(start / "atlas"), MMEmbR1(str(start / "model"), device="cpu")
        columns: dict[str, npt.NDArray] = {}
        for split in SPLITS:
            rows = answers(start, atlas, split, output)
            queries = inputs_of(atlas.pairs[split]["query"])
            columns |= {f"{split}/{name}": values for name, values in rows.items()}
            columns[f"{split}/state"] = read_by_gate(model, queries, 128).numpy()
            columns[f"{split}/wording"] = wordings(model, queries)
        np.savez(path, **columns)
    return dict(np.load(path))


@torch.no_grad()
def wordings(model: MMEmbR1, queries: list[Any], batch_size: int = 128) -> npt.NDArray:
    """`(N, H)` means of the input embeddings of all tokens but those of pictures."""
    batches = (model.preprocess(queries[start : start + batch_size]) for start in range(0, len(queries), batch_size))
    network = model[0].model
    return torch.cat([mean_words(network.vlm, one["input_ids"], one["attention_mask"]) for one in batches]).numpy()


def answers(start: Path, atlas: Atlas, split: str, output: Path) -> dict[str, npt.NDArray]:
    folder = output / f"{start.resolve().name}-{split}"
    rows = joined([outcomes_in(start / "model", atlas.pairs[split], atlas.candidates, folder)])
    rows["gap"] = rows["aligned_always"] - rows["aligned_never"]
    return rows


def scores(columns: dict[str, npt.NDArray]) -> Iterator[tuple[str, Rows, bool]]:
    """Name of a classifier, its score of each test query, and whether it is a gate, which thinks above 0."""
    gap, task, state, wording = (columns[f"policy/{name}"] for name in ("gap", "task", "state", "wording"))
    counted = np.abs(gap) >= LEAST_GAP
    number = {name: int((task == name).sum()) for name in set(task.tolist())}
    even = np.array([1 / number[name] for name in task.tolist()])
    yield "the model's gate", columns["test/gate_prob"] - 0.5, True
    for name, weights in (("linear, by stake", np.ones(len(gap))), ("linear, by stake, tasks even", even)):
        yield name, linear_gate(state, gap, weights, columns["test/state"]), True
        yield f"wording, {name}", linear_gate(wording, gap, weights, columns["test/wording"]), True
    for name, classifier in (
        ("logistic regression, sign of the gap", LogisticRegression(C=0.01, max_iter=2000)),
        ("support vectors, sign of the gap", SVC(C=3, gamma="scale")),
    ):
        fitted = make_pipeline(StandardScaler(), classifier).fit(state[counted], gap[counted] > 0)
        yield name, fitted.decision_function(columns["test/state"]), False
    for split in SPLITS:
        paid = {
            name: float((columns[f"{split}/gap"][where] > 0).mean())
            for name in set(columns[f"{split}/task"].tolist())
            if (where := (columns[f"{split}/task"] == name) & (np.abs(columns[f"{split}/gap"]) >= LEAST_GAP)).any()
        }
        yield f"task, on {split}", np.array([paid.get(name, 0.5) for name in columns["test/task"].tolist()]), False
        better = columns[f"{split}/always"] - columns[f"{split}/never"]
        gains = {
            name: float(better[columns[f"{split}/task"] == name].mean())
            for name in set(columns[f"{split}/task"].tolist())
        }
        yield f"better mode of a task, on {split}", np.array([gains[name] for name in columns["test/task"]]), True


def linear_gate(state: Rows, gap: Rows, weights: Rows, asked: Rows) -> Rows:
    """Logits of a linear gate on standardised states, fitted as a warm start does, with weights of the rows."""
    scaler = StandardScaler().fit(state)
    inputs, others, gaps, even = (
        torch.tensor(values, dtype=torch.float32)
        for values in (scaler.transform(state), scaler.transform(asked), gap, weights)
    )
    torch.manual_seed(0)
    gate = torch.nn.Sequential(torch.nn.Linear(inputs.shape[1], 1), torch.nn.Flatten(0))
    fit_gate(gate, inputs, gaps, weights=even)
    with torch.no_grad():
        return gate(others).numpy().astype(float)


def over_tasks(values: npt.NDArray, task: npt.NDArray) -> float:
    """The mean over the tasks of the means over their rows."""
    return float(np.mean([values[task == name].mean() for name in sorted(set(task.tolist()))]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, nargs="+", default=[Path("runs/adaptive/start-0")])
    parser.add_argument("--output", type=Path, default=Path("runs/gate-limits"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    console = Console(width=120)
    for start in args.start:
        columns = measured(start, args.output)
        gap, task = columns["test/gap"], columns["test/task"]
        counted = np.abs(gap) >= LEAST_GAP
        never, always = columns["test/never"], columns["test/always"]
        fixed = max(over_tasks(never, task), over_tasks(always, task))
        oracle = over_tasks(np.maximum(never, always), task)
        table = Table(title=f"{start}: fixed {fixed:.3f}, oracle {oracle:.3f}; gaps counted {counted.mean():.0%}")
        for name in ("classifier", "AUC", "R@1 auto", "captured", "simple", "multi-hop"):
            table.add_column(name, justify="left" if name == "classifier" else "right")
        for name, score, is_gate in scores(columns):
            cells = [f"{auc(score[counted], gap[counted] > 0)[0]:.3f}"]
            if is_gate:
                auto = over_tasks(np.where(score >= 0, always, never), task)
                cells += [f"{auto:.3f}", f"{(auto - fixed) / (oracle - fixed):.0%}"]
                for complexity in ("simple", "multi-hop"):
                    kind = columns["test/complexity"] == complexity
                    cells.append(f"{over_tasks((score >= 0).astype(float)[kind], task[kind]):.0%}")
            table.add_row(name, *cells)
        console.print(table)


if __name__ == "__main__":
    main()
