"""Gather the study's results in one object, and show them as tables in the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from experiments.pipeline.evaluator import PARTS
from experiments.pipeline.stage import STAGE_FILE, cost_of
from experiments.study.claims import claims_of
from experiments.study.formats import points, share
from experiments.study.forms import ATLAS_SEED, TRAINED
from experiments.study.sessions import read_sessions
from experiments.study.summary import summarise
from experiments.study.tasks import CLAIM, ERRORS_FOLDER, NUM_PARTS, Study
from mmemb_r1.evaluation.settings import MODES
from mmemb_r1.training.base_trainer import TRAINING_FILE


def results_of(study: Study) -> dict[str, Any]:
    """
    Gather all that was found, and how, as JSON can hold it.

    Returns:
        What `summarise` gives, and `form`, `given` (whether a warm-up and an evaluator were, and their digests),
        `parameters` of the model, `commits` of the stages, `sessions`, `seconds` of the common stages, `evaluator`,
        and `claims`.
    """
    summary = summarise(study)
    return {
        "form": {**asdict(study.form), "seeds": {name: row["seeds"] for name, row in summary["rows"].items()}},
        "given": given_to(study),
        "parameters": parameters_of(study),
        "commits": commits_of(study),
        "sessions": read_sessions(study.output),
        "seconds": common_seconds(study),
        "evaluator": evaluator_of(study),
        **summary,
        "claims": [asdict(claim) for claim in claims_of(summary)],
    }


def given_to(study: Study) -> dict[str, str]:
    """`warm_up` and `evaluator`: `made here`, or that it was given, and its digest."""
    path = study.output / CLAIM
    noted = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: noted[name] for name in ("warm_up", "evaluator") if name in noted}


def parameters_of(study: Study) -> int | None:
    """Of the model that the first row trains; `None` if that was not noted."""
    paths = sorted((study.output / "rows").glob(f"*/joint/{TRAINING_FILE}"))
    return json.loads(paths[0].read_text(encoding="utf-8")).get("parameters") if paths else None


def commits_of(study: Study) -> list[str]:
    """All commits that stages of the rows were made at; `unknown` is one of them where git did not know."""
    noted = [cost_of(path.parent) or {} for path in (study.output / "rows").glob(f"*/*/{STAGE_FILE}")]
    return sorted({one.get("commit") or "unknown" for one in noted})


def common_seconds(study: Study) -> dict[str, Any]:
    """Stage -> what it took, of those that all rows share; `None` if it was not noted."""
    seeds = sorted({ATLAS_SEED, *(seed for row in study.rows for seed in study.seeds_of(row))})
    found: dict[str, Any] = {f"warm-up, seed {seed}": cost_of(study.warm_up_of(seed)) for seed in seeds}
    if study.evaluator is None and study.form.evaluator_from == TRAINED:
        folders = [study.evaluator_folder.parent / part for part in PARTS]
        parts = [cost for folder in folders if (cost := cost_of(folder)) is not None]
        found["evaluator"] = {
            "seconds": sum(cost["seconds"] for cost in parts),
            "resumed": any(cost["resumed"] for cost in parts),
        }
    for name, folder in (("scoring", ""), ("scoring of errors of one kind", ERRORS_FOLDER)):
        for part in range(1, NUM_PARTS + 1):
            if (cost := cost_of(study.output / folder / "scores" / f"part-{part}.json")) is not None:
                found[f"{name}, part {part}"] = cost
    return found


def evaluator_of(study: Study) -> dict[str, Any] | None:
    """Its `kind`, and what it does without a rationale, `accuracy`, `chance`, ..., by the report of the scoring."""
    path = study.output / "scores" / "report.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))["evaluator"]
    return {"kind": found["definition"]["kind"], **found["direct"]}


def as_tables(results: Mapping[str, Any]) -> Iterator[Table]:
    """Tables of levels, differences and claims."""
    yield _levels(results)
    yield _differences(results)
    claims = Table(title="claims; published figures are on the page", title_justify="left", box=SIMPLE_HEAD)
    for name in ("claim", "here"):
        claims.add_column(name, ratio=1)
    for claim in results["claims"]:
        claims.add_row(Text(claim["text"]), Text(f"{claim['verdict'].upper()}: {claim['ours']}"))
    yield claims


def _levels(results: Mapping[str, Any]) -> Table:
    table = Table(title=f"R@1, {', '.join(MODES)}: means over tasks and seeds", title_justify="left", box=SIMPLE_HEAD)
    for name in ("row", "seeds"):
        table.add_column(name, no_wrap=True)
    groups = ("simple", "multi-hop", "all")
    for group in groups:
        table.add_column(group, justify="right", no_wrap=True)
    for name in ("think", "tokens"):
        table.add_column(name, justify="right")
    for name, row in results["rows"].items():
        cells = [" ".join(share(row["levels"][group][mode]) for mode in MODES) for group in groups]
        whole = row["levels"]["all"]
        seeds = " ".join(map(str, row["seeds"]))
        table.add_row(name, seeds, *cells, f"{whole['invocation']['mean']:.0%}", f"{whole['tokens']['mean']:.1f}")
    return table


def _differences(results: Mapping[str, Any]) -> Table:
    table = Table(
        title="points against the full method, 95 % intervals by country or object",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("row", no_wrap=True)
    for group, mode in (("multi-hop", "always"), ("simple", "never"), ("all", "auto")):
        table.add_column(f"{group}, {mode}", justify="right")
    for name, row in results["rows"].items():
        if "differences" in row:
            found = row["differences"]
            cells = [points(found[g][m]) for g, m in (("multi-hop", "always"), ("simple", "never"), ("all", "auto"))]
            table.add_row(name, *cells)
    return table
