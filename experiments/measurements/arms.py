"""Train the arms: models from the same warm-up that differ in what they learn from, not in pairs or steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from datasets import Dataset

from experiments.pipeline.joint import joint_settings, train_from
from experiments.pipeline.posterior import (
    SHARED,
    quality_of,
    read_scores,
    score_rationales,
    select_from,
    training_table,
)
from experiments.pipeline.prior import draw_pool
from experiments.pipeline.recipe import Recipe
from experiments.pipeline.tasks import FLAGS, JOINT_TASK_WEIGHTS, NEIGHBOURS, POOLED, of_tasks
from experiments.pipeline.warm_up import WARM_UP_STEPS, warm_up
from mmemb_r1.atlas import Atlas, build_atlas
from mmemb_r1.runs import made_whole, record_run, write_json
from mmemb_r1.training.selection.config import SelectionOptions

# Chains of three steps need the neighbours by heart. The warm-up has shown each about twice, other facts 15 times.
DEPTH_TASK_WEIGHTS = {
    **JOINT_TASK_WEIGHTS,
    **dict.fromkeys(FLAGS, 3.0),
    **dict.fromkeys(NEIGHBOURS, 12.0),
    "fact-flag": 0.5,
    "name-picture": 0.5,
    "picture-name-flag": 15.0,
    "picture-name-object": 5.0,
    "fact-capital": 5.0,
    "fact-currency": 5.0,
    "fact-tld": 2.0,
    "fact-language": 2.0,
    "fact-region": 1.0,
    "fact-largest-neighbour": 12.0,
    "fact-smallest-neighbour": 12.0,
}
STEPS, LEARNING_RATE = 500, 3e-4
GOLD = "gold"
ATLAS_SEED, NUM_OBJECTS = 0, 240
TINY_ATLAS = {"num_objects": 12, "num_countries": 40, "generated_rows": 4, "num_drawings": 12}
TINY_WARM_UP_STEPS = 20
WAYS = {"selected": SHARED, "unselected": SelectionOptions("none", seed=ATLAS_SEED)}


@dataclass(frozen=True)
class Arm:
    """
    One way to train.

    Args:
        rationales: `"selected"` or `"unselected"`, a table of the pool; `"gold"`, Atlas's own, in segments; `None`
            trains the direct path alone.
        fields: further fields of `JointConfig`.
        rounds: rationales of one chain.
        task_weights: how often each task is drawn.
    """

    rationales: str | None
    fields: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 1
    task_weights: Mapping[str, float] = field(default_factory=lambda: JOINT_TASK_WEIGHTS)


ARMS = {
    "selected": Arm("selected"),
    "unselected": Arm("unselected"),
    "direct": Arm(None),
    "selected-unmixed": Arm("selected", {"direct_reasoned_weight": 0.0, "reasoned_direct_weight": 0.0}),
    "depth": Arm(GOLD, rounds=3, task_weights=DEPTH_TASK_WEIGHTS),
}


def make_start(output: Path, seed: int, tiny: bool = False) -> bool:
    """
    Train what all arms of a seed start from: it names pictures and knows facts as text.

    Args:
        output: the experiment's folder. Gets `atlas` and `warm-{seed}`.
        seed: of the weights and the order; the Atlas is the same for all seeds.
        tiny: a small Atlas and a few steps, to try the script.

    Returns:
        Whether it was made; `False` if it was there already.
    """
    arguments = TINY_ATLAS if tiny else {"num_objects": NUM_OBJECTS}
    atlas = build_atlas(output / "atlas", seed=ATLAS_SEED, **arguments)
    recipe = Recipe(seed=seed, steps=TINY_WARM_UP_STEPS if tiny else WARM_UP_STEPS)
    checkpoints = output / f"checkpoints-warm-{seed}"
    return made_whole(output / f"warm-{seed}", lambda folder: warm_up(atlas, recipe, folder, checkpoints))


def table_path(output: Path, way: str) -> Path:
    """Where the rationales are that a way of selecting kept."""
    return output / "selection" / f"{way}.parquet"


def select_both(atlas: Atlas, output: Path, evaluator: Path, part: tuple[int, int] = (1, 1)) -> dict[str, Any] | None:
    """
    Draw the four workers' rationales for the multi-hop pairs of `train`, score them, and select.

    Args:
        atlas: the Atlas.
        output: the experiment's folder. Gets `selection/pool`, `selection/scores`, a table per way of selecting
            (`table_path`) and `selection/quality.json`.
        evaluator: its folder.
        part: `(i, n)`: score the i-th of n parts. Default: all.

    Returns:
        What is in `quality.json`: way -> `all`, and the same numbers for each task and side (`task, side`). `None` if
        other parts are still to be scored.
    """
    folder = output / "selection"
    pairs = of_tasks(atlas.pairs["train"], POOLED)
    rationales = draw_pool(atlas, pairs, folder / "pool", ATLAS_SEED)
    if score_rationales(pairs, rationales, evaluator, folder / "scores", part) is None:
        return None
    scores = read_scores(folder / "scores")
    qualities = {
        way: quality_of(select_from(scores, options, table_path(output, way)), pairs) for way, options in WAYS.items()
    }
    write_json(folder / "quality.json", qualities)
    return qualities


def train_arm(
    atlas: Atlas,
    output: Path,
    run: Path,
    name: str,
    seed: int,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
) -> bool:
    """
    Train one arm from the warm-up of its seed, and save it in `run / "arms"`. A killed run goes on.

    Args:
        atlas: its `train` split is trained on.
        output: the experiment's folder, with warm-ups and tables of rationales.
        run: the folder of these numbers.
        name: a key of `ARMS`.
        seed: of the warm-up and the order.
        steps: optimiser steps.
        learning_rate: the highest one.

    Returns:
        Whether it was trained; `False` if it was there already.

    Raises:
        ValueError: if the arm was begun with other numbers or rationales, or what it starts from is not there.
    """
    arm, start = ARMS[name], output / f"warm-{seed}"
    if not start.exists():
        raise ValueError(f"there is no {start}; run --stages warm-up first")
    pairs = of_tasks(atlas.pairs["train"], set(arm.task_weights))
    rationales = rationales_of(arm, pairs, output)
    settings = joint_settings(
        Recipe(seed=seed),
        **{
            "max_steps": steps,
            "learning_rate": learning_rate,
            "task_weights": dict(arm.task_weights),
            "use_rationales": arm.rationales is not None,
            "max_reasoning_rounds": arm.rounds,
            **arm.fields,
        },
    )
    facts = {**settings, "atlas": atlas.manifest["fingerprint"], "rationales": _digest(rationales)}
    record_run(
        run / "arms" / f"{name}-{seed}.json",
        facts,
        what=f"the arm {name}-{seed}",
        hint="Other numbers go into another --variant.",
    )
    checkpoints = run / "checkpoints" / f"{name}-{seed}"
    return made_whole(
        run / "arms" / f"{name}-{seed}",
        lambda folder: train_from(start, pairs, rationales, settings, folder, checkpoints),
    )


def rationales_of(arm: Arm, pairs: Dataset, output: Path) -> Dataset | None:
    """The table that an arm draws rationales from; `None` for those in the pairs table, or none at all."""
    if arm.rationales in (None, GOLD):
        return None
    path = table_path(output, str(arm.rationales))
    if not path.exists():
        raise ValueError(f"there is no {path}; run --stages selection first")
    return training_table(path, pairs)


def _digest(rationales: Dataset | None) -> str | None:
    if rationales is None:
        return None
    columns = rationales.select_columns(["pair_id", "side", "text", "posterior"]).with_format("arrow")[:]
    return blake2b(repr(columns.to_pydict()).encode(), digest_size=16).hexdigest()
