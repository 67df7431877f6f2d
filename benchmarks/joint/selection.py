"""One pool of rationales, judged once, selected twice: counterfactually and not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.pipeline.posterior import SHARED, judge, quality_of, scores_of, select_from
from experiments.pipeline.prior import draw_pool
from experiments.pipeline.tasks import POOLED, of_tasks
from mmemb_r1.atlas import Atlas
from mmemb_r1.runs import write_json
from mmemb_r1.training.selection.config import SelectionOptions

SEED = 0
WAYS = {"selected": SHARED, "unselected": SelectionOptions("none", seed=SEED)}


def table_path(output: Path, way: str) -> Path:
    """Where the rationales are that a way of selecting kept."""
    return output / "selection" / f"{way}.parquet"


def select_both(atlas: Atlas, output: Path, evaluator: Path, part: tuple[int, int] = (1, 1)) -> dict[str, Any] | None:
    """
    Draw the four workers' rationales for the multi-hop pairs of `train`, judge them, and select.

    Args:
        atlas: the Atlas.
        output: the experiment's folder. Gets `selection/pool`, `selection/scores`, a table per way of selecting
            (`table_path`) and `selection/quality.json`.
        evaluator: its folder.
        part: `(i, n)`: judge the i-th of n parts. Default: all.

    Returns:
        What is in `quality.json`: way -> `all`, and the same numbers for each task and side (`task, side`). `None` if
        other parts are still to be judged.
    """
    folder = output / "selection"
    pairs = of_tasks(atlas.pairs["train"], POOLED)
    rationales = draw_pool(atlas, pairs, folder / "pool", SEED)
    if judge(pairs, rationales, evaluator, folder / "scores", part) is None:
        return None
    scores = scores_of(folder / "scores")
    qualities = {
        way: quality_of(select_from(scores, options, table_path(output, way)), pairs) for way, options in WAYS.items()
    }
    write_json(folder / "quality.json", qualities)
    return qualities
