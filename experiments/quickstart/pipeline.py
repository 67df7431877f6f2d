"""The quickstart from beginning to end. A killed run goes on where it was."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from experiments.pipeline.stage import num_threads
from experiments.quickstart import stages
from experiments.quickstart.recipe import RECIPE_FILE, QuickstartRecipe
from mmemb_r1.atlas import build_atlas
from mmemb_r1.evaluation.run_folder import Results
from mmemb_r1.runs import record_run

MAX_JOBS = 4  # each takes about a gigabyte
STAGES = (
    ("The warm-up: names of pictures, and facts as text", stages.run_warm_up),
    ("The prior: what four workers think of the questions", stages.run_prior),
    ("The posterior: which of their thoughts help?", stages.run_posterior),
    ("The joint phase: thinking and embedding together", stages.run_joint),
    ("The gate: when does thinking pay?", stages.run_gate),
    ("GRPO: the gate and the thoughts, by what they are worth", stages.run_grpo),
)


def run_quickstart(
    output: Path, recipe: QuickstartRecipe, console: Console | None = None, jobs: int | None = None
) -> Results:
    """
    Build Atlas, train a model on it with the whole method, evaluate it and return the results.

    Args:
        output: a directory; stages that lie there already are not done again.
        recipe: what to do.
        console: where progress is told. Default: standard output.
        jobs: processes that judge rationales. Default: one per thread, four at most.

    Returns:
        What [`evaluate`] returned for the test split, with `training` and the time of the `stages` in its `config`.

    Raises:
        ValueError: if `output` was begun with another recipe, or Atlas is another one now.
    """
    console = console or Console()
    record_run(output / RECIPE_FILE, asdict(recipe))
    console.rule("1. Atlas: pictures, facts and questions")
    atlas = build_atlas(output / "atlas", seed=recipe.warm_up.seed, **recipe.warm_up.atlas)
    record_run(output / "data.json", {"atlas": atlas.manifest["fingerprint"]})
    console.print({split: len(pairs) for split, pairs in atlas.pairs.items()})
    run = stages.Quickstart(output, recipe, atlas, console, jobs or min(num_threads(), MAX_JOBS))
    for number, (title, stage) in enumerate(STAGES, 2):
        console.rule(f"{number}. {title}")
        stage(run)
    console.rule(f"{len(STAGES) + 2}. Evaluation on the test split")
    return stages.measure(run)
