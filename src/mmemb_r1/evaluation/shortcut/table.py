"""The figures of the shortcut test as a table for the terminal, and its verdict as a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmemb_r1.evaluation.reports.cells import MISSING, points, points_between
from mmemb_r1.evaluation.reports.terminal import Head, lined_table
from mmemb_r1.evaluation.run.summary import ALL
from mmemb_r1.evaluation.shortcut.figures import INTERVENTIONS
from mmemb_r1.evaluation.shortcut.verdict import IGNORES, READS, UNDECIDED

if TYPE_CHECKING:
    from rich.table import Table

STATEMENTS = {
    READS: "reads its rationales",
    IGNORES: "ignores its rationales",
    UNDECIDED: "undecided whether it reads its rationales",
}


def shortcut_table(results: Mapping[str, Any], title: str = "What other rationales cost") -> Table:
    """
    A `rich` table: per task, group and over all the score with the own rationales; what it costs, in points, to take
    them away (`drop`: the direct vector; `empty`: `<think></think>`), to swap them, with the 95 % interval, and to
    shuffle their words; the cosine of the vectors after each and after the own one; at last that of the vectors of two
    queries, each after its own rationale (`queries`), and the verdict.

    Args:
        results: what `diagnose` returned.
        title: above it.
    """
    names = ["n", "score"]
    for name in INTERVENTIONS:
        names += [name, "95 %"] if name == "swap" else [name]
    names += [*(f"cos {name}" for name in INTERVENTIONS), "queries"]
    heads = [Head(name, main=name in ("swap", "cos swap")) for name in names]
    return lined_table(title, [*heads, Head("verdict", number=False)], dict(results), _cells)


def _cells(entry: Mapping[str, Any]) -> list[str]:
    found = entry["interventions"]
    cells = [str(entry["n"]), f"{entry['score']['mean']:.3f}"]
    for name in INTERVENTIONS:
        cells.append(MISSING if found[name] is None else points(found[name]["cost"]["mean"]))
        if name == "swap":
            cells.append(MISSING if found[name] is None else points_between(found[name]["cost"]))
    cells += [MISSING if found[name] is None else f"{found[name]['cosine']['mean']:.2f}" for name in INTERVENTIONS]
    between = entry["cosine_between_queries"]
    return [*cells, MISSING if between is None else f"{between:.2f}", entry["verdict"]]


def verdict_line(results: Mapping[str, Any], model: str) -> str:
    """What the test says of a model, in one line."""
    found = results["summary"][ALL]
    return f"{model}: {STATEMENTS[found['verdict']]}: {found['reason']}"
