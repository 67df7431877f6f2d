"""
How well can anything that is there before a rationale predict whether thinking pays? Classifiers of several kinds
are fitted on the `policy` split, where a model's utility gap was measured, and evaluated on the test split.

    python -m experiments.measurements.gate_limits [--start runs/adaptive/start-0 ...] [--output runs/gate-limits]

`--start` names folders of `adaptive_phase.py --stages start` (or of the quickstart, whose gate GRPO has taught since).
Printed per classifier: the AUC against the sign of the gap where that is at least 0.1 in size; and for those that are
gates, R@1 when they decide and that minus the better fixed mode, with its 95 % interval by country or object; which
share of always' tokens they spend; the least share with which their order of the queries reaches the score of always
less 0.3 points; and how often they think in tasks where always gains at most a point (`little`) or at least 20
(`much`). Linear gates read the state, the mean of the prompt's word embeddings, or both, and are fitted with several
prices of a token. `task` knows which task a query is of: how often thinking paid there, or which mode was better, on
`policy` or on the test split itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
from experiments.pipeline.outcomes import answers_of
from mmemb_r1 import MMEmbR1
from mmemb_r1.atlas import Atlas, load_atlas
from mmemb_r1.content import inputs_of
from mmemb_r1.evaluation.invocation import (
    LEAST_GAP,
    Answers,
    auc,
    invocation_by_gain,
    judge_choice,
    least_tokens,
)
from mmemb_r1.modeling.gate_inputs_mmemb_r1 import mean_words
from mmemb_r1.training.gate import fit_gate, input_scale
from mmemb_r1.training.gate_decisions import read_by_gate

Rows = npt.NDArray[np.float64]
SPLITS = ("policy", "test")
COLUMNS = {"state": "state", "words": "wording"}  # what a gate may read -> where it is measured
PROBABILITIES = ("target_probability_never", "target_probability_always")
POOLED = ("task", "cluster", "never", "always", "tokens", "gate_prob", *PROBABILITIES)
READ = (("state",), ("words",), ("state", "words"))


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


def scores(columns: dict[str, npt.NDArray], prices: Sequence[float]) -> Iterator[tuple[str, Rows, bool]]:
    """Name of a classifier, its score of each test query, and whether it is a gate, which thinks from 0 on."""
    gap = columns["policy/gap"]
    counted = np.abs(gap) >= LEAST_GAP
    yield "the model's gate", columns["test/gate_prob"] - 0.5, True
    for names in READ:
        for price in prices:
            fitted = linear_gate(columns, names, gap, price * columns["policy/tokens"])
            yield f"{' + '.join(names)}, price {price:g}", fitted, True
    state = columns["policy/state"]
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


def linear_gate(columns: dict[str, npt.NDArray], names: Sequence[str], gap: Rows, cost: Rows) -> Rows:
    """Logits of a linear gate on some inputs of the test queries, fitted as `mmemb-r1 train gate` does."""
    inputs, asked = (
        torch.from_numpy(np.concatenate([columns[f"{split}/{COLUMNS[name]}"] for name in names], axis=1)).float()
        for split in SPLITS
    )
    gate = torch.nn.Sequential(torch.nn.Linear(inputs.shape[1], 1), torch.nn.Flatten(0))
    for parameter in gate.parameters():
        torch.nn.init.zeros_(parameter)
    gaps, costs = torch.from_numpy(gap).float(), torch.from_numpy(cost).float()
    fit_gate(gate, inputs, gaps, costs, scale=input_scale(inputs, names))
    with torch.no_grad():
        return gate(asked).numpy().astype(float)


def table_of(title: str, answers: Answers, found: Mapping[str, tuple[Rows, bool]]) -> Table:
    """Lay out what each classifier is worth on these answers."""
    gap = answers.gap()
    counted = np.abs(gap) >= LEAST_GAP
    fixed = judge_choice(answers, np.zeros(len(gap), dtype=bool))
    modes = ", ".join(f"{name} {getattr(fixed, name).mean:.3f}" for name in ("never", "always", "oracle"))
    table = Table(title=f"{title}: {modes}; gaps counted {counted.mean():.0%}")
    for name in ("classifier", "AUC", "auto", "minus the better", "tokens", "least tokens", "little", "much"):
        table.add_column(name, justify="left" if name == "classifier" else "right")
    for name, (score, is_gate) in found.items():
        cells = [f"{auc(score[counted], gap[counted] > 0)[0]:.3f}"]
        if is_gate:
            thinks = score >= 0
            choice, rates = judge_choice(answers, thinks), invocation_by_gain(answers, thinks)
            least = least_tokens(replace(answers, gate_prob=score))
            cells += [
                f"{choice.auto.mean:.3f}",
                f"{100 * choice.gain.mean:+.1f} [{100 * choice.gain.low:.1f}, {100 * choice.gain.high:.1f}]",
                f"{choice.tokens.mean / choice.tokens_always.mean:.0%}",
                *("-" if value is None else f"{value:.0%}" for value in (least, rates["little"], rates["much"])),
            ]
        table.add_row(name, *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, nargs="+", default=[Path("runs/adaptive/start-0")])
    parser.add_argument("--output", type=Path, default=Path("runs/gate-limits"))
    parser.add_argument("--prices", type=float, nargs="+", default=[0.0, 0.001, 0.002, 0.004], help="of a token")
    parser.add_argument("--without", nargs="*", default=[], help="tasks to leave out, for example those not trained")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    console = Console(width=140)
    tables: list[tuple[Answers, dict[str, tuple[Rows, bool]]]] = []
    for start in args.start:
        columns = only(measured(start, args.output), args.without)
        answers = answers_of({name.removeprefix("test/"): columns[name] for name in columns if name[:5] == "test/"})
        found = {name: (score, is_gate) for name, score, is_gate in scores(columns, args.prices)}
        tables.append((answers, found))
        console.print(table_of(str(start), answers, found))
    if len(tables) > 1:
        answers = Answers(**{name: np.concatenate([getattr(a, name) for a, _ in tables]) for name in POOLED})
        pooled = {
            name: (np.concatenate([found[name][0] for _, found in tables]), is_gate)
            for name, (_, is_gate) in tables[0][1].items()
        }
        console.print(table_of(f"all {len(tables)} together", answers, pooled))


def only(columns: Mapping[str, npt.NDArray], without: Sequence[str]) -> dict[str, npt.NDArray]:
    """The columns of both splits without the queries of some tasks."""
    kept = {split: ~np.isin(columns[f"{split}/task"], without) for split in SPLITS}
    return {name: values[kept[name.partition("/")[0]]] for name, values in columns.items()}


if __name__ == "__main__":
    main()
