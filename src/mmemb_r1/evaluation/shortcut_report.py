"""The figures of the shortcut test as a table for the terminal, and its verdict as a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmemb_r1.evaluation.report import MISSING, sections_of
from mmemb_r1.evaluation.shortcut import IGNORES, INTERVENTIONS, READS, UNDECIDED
from mmemb_r1.evaluation.summary import ALL

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
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("task", no_wrap=True)
    for name in ("n", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in INTERVENTIONS:
        table.add_column(name, justify="right", no_wrap=True, style="bold" if name == "swap" else None)
        if name == "swap":
            table.add_column("95 %", justify="right", no_wrap=True)
    for name in (*(f"cos {name}" for name in INTERVENTIONS), "queries"):
        table.add_column(name, justify="right", no_wrap=True, style="bold" if name == "cos swap" else None)
    table.add_column("verdict", no_wrap=True)
    for section in sections_of(dict(results)):
        for line in section:
            table.add_row(line.title, *_cells(line.entry), style="italic" if line.mean else None)
        table.add_section()
    return table


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


def points(value: float) -> str:
    """
    A share as points, of which 100 are everything.

    >>> points(0.125), points(-0.0001)
    ('12.5', '0.0')
    """
    return f"{100 * value:.1f}".replace("-0.0", "0.0") if abs(value) < 0.0005 else f"{100 * value:.1f}"


def points_between(interval: Mapping[str, float]) -> str:
    """
    Both ends of an interval, as points.

    >>> points_between({"low": -0.01, "high": 0.125})
    '-1.0..12.5'
    """
    return f"{points(interval['low'])}..{points(interval['high'])}"


def verdict_line(results: Mapping[str, Any], model: str) -> str:
    """What the test says of a model, in one line."""
    found = results["summary"][ALL]
    return f"{model}: {STATEMENTS[found['verdict']]}: {found['reason']}"
