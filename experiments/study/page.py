"""Write the study's results as a page of the documentation; its sentences are in `page.md.jinja`."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from experiments.pipeline.tasks import JOINT_TASK_WEIGHTS, MULTI_HOP, PICTURE_TARGETS
from experiments.study.formats import environment
from experiments.study.summary import ONE_STEP
from mmemb_r1.evaluation.statistics import NUM_PAIRED_SAMPLES

WIDTH = 119
TEMPLATE = "page.md.jinja"
_GIVEN = {"warm_up": "The warm-up of seed 0", "evaluator": "The evaluator"}


def page(results: Mapping[str, Any]) -> str:
    """Render the page, Markdown, from what `results_of` gave."""
    source = (files("experiments.study") / TEMPLATE).read_text(encoding="utf-8")
    text = environment().from_string(source).render({**results, **numbers_of(results)})
    return "\n\n".join(map(wrapped, re.split(r"\n\s*\n(?=\S|    )", text.strip()))) + "\n"


def numbers_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of the page that follow from the results, or from how Atlas is made."""
    rows, full = results["rows"], results.get("full")
    lines = [(f"({row['number']}) {name}", row["levels"]) for name, row in rows.items()]
    if full is not None and full.get("first") is not None:
        lines.insert(1, ("(1) full, its first seed alone", full["first"]))
    shortcuts = [(rows.get(name) or {}).get("shortcut") for name in ("full", "no-selection")]
    swaps = [one["interventions"]["swap"] for one in shortcuts if one is not None]
    joined = ((rows.get("model-joins") or {}).get("selection") or {}).get("kept rationales by worker")
    return {
        "full": full,
        "rows": {name: {"differences": None, **row} for name, row in rows.items()},
        "lines": lines,
        "first_levels": next(iter(rows.values()))["levels"],
        "several_seeds": [row for row in rows.values() if len(seeds_compared(row)) > 1],
        "joined": joined,
        "swaps": [swap for swap in swaps if swap is not None],
        "given": {
            what: noted.removeprefix("given, ")
            for name, what in _GIVEN.items()
            if (noted := results["given"].get(name, "made here")) != "made here"
        },
        "common_seconds": results["seconds"],
        "fact_tasks": len([task for task in JOINT_TASK_WEIGHTS if task.startswith("fact-") and task not in MULTI_HOP]),
        "tasks": len(JOINT_TASK_WEIGHTS),
        "picture_targets": PICTURE_TARGETS,
        "one_step": ONE_STEP,
        "draws": NUM_PAIRED_SAMPLES,
    }


def seeds_compared(row: Mapping[str, Any]) -> Mapping[str, float]:
    """The differences of a row to the full method, seed by seed; empty where there is nothing to compare with."""
    return row["differences"]["all"]["auto"]["seeds"] if row.get("differences") else {}


def wrapped(part: str) -> str:
    """A paragraph in lines that are not too long; tables, headings and commands as they are."""
    if part.startswith(("|", "#", "    ")):
        return part
    return textwrap.fill(part, WIDTH, break_long_words=False, break_on_hyphens=False)
