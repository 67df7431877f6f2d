"""The quickstart's stages. Each writes its result whole and is skipped when that is there, so a killed run goes on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from mmemb_r1 import MMEmbR1
from mmemb_r1._files import claim, made_whole, replaced_file
from mmemb_r1.atlas import Atlas, build_atlas
from mmemb_r1.evaluation import evaluate, load_results, save_results
from mmemb_r1.model_card import write_model_card
from mmemb_r1.pipeline.gate import fit_gate_of
from mmemb_r1.pipeline.joint import train_from_nothing, write_json
from mmemb_r1.pipeline.recipe import Recipe
from mmemb_r1.training.training_facts import TRAINING_FILE

RECIPE_FILE = "recipe.json"


def run_quickstart(output: Path, recipe: Recipe, console: Console | None = None) -> dict[str, Any]:
    """
    Build Atlas, train a model on it, evaluate it and return the results.

    Args:
        output: a directory; stages that lie there already are not done again.
        recipe: what to do.
        console: where progress is told. Default: standard output.

    Returns:
        What [`evaluate`] returned for the test split, with `training` beside it.

    Raises:
        ValueError: if `output` was begun with another recipe, or Atlas is another one now.
    """
    console = console or Console()
    claim(output / RECIPE_FILE, asdict(recipe))
    console.rule("1. Atlas: pictures, facts and questions")
    atlas = build_atlas(output / "atlas", seed=recipe.seed, **recipe.atlas)
    claim(output / "data.json", {"atlas": atlas.manifest["fingerprint"]})
    console.print({split: len(pairs) for split, pairs in atlas.pairs.items()})
    console.rule("2. The joint phase: thinking and embedding together")
    trained, checkpoint, results_file = output / "trained", output / "model", output / "results.json"
    if not made_whole(trained, lambda folder: train_from_nothing(atlas, recipe, folder, output / "checkpoints")):
        console.print(f"{trained} is there already.")
    console.rule("3. The gate: when does thinking pay?")
    if not made_whole(checkpoint, lambda folder: add_gate(atlas, trained, folder, console)):
        console.print(f"{checkpoint} is there already.")
    console.rule("4. Evaluation on the test split")
    if not results_file.exists():
        training = json.loads((checkpoint / TRAINING_FILE).read_text(encoding="utf-8"))
        results = evaluate(
            MMEmbR1(str(checkpoint), device="cpu"),
            atlas.pairs["test"],
            atlas.candidates,
            modes=("never", "always", "auto"),
            batch_size=128,
            train_pairs=atlas.pairs["train"],
            config={
                "model": "quickstart",
                "dataset": "Atlas",
                "split": "test",
                "seed": recipe.seed,
                "training": training,
            },
        )
        with replaced_file(results_file) as temporary:
            save_results(results, temporary)
            write_model_card(checkpoint, results=temporary, training=training)
    return load_results(results_file)


def add_gate(atlas: Atlas, trained: Path, folder: Path, console: Console) -> None:
    """Fit the gate on the `policy` split, whose compositions the embedder never saw, and save the model with it."""
    facts = fit_gate_of(trained, atlas.pairs["policy"], atlas.candidates, folder)
    console.print(
        f"thinking pays on {facts['pays']:.0%} of the policy split; the gate chooses it on {facts['thinks']:.0%}"
    )
    training = json.loads((trained / TRAINING_FILE).read_text(encoding="utf-8"))
    gate = {
        "thinking pays on": f"{facts['pays']:.1%} of policy",
        "the gate thinks on": f"{facts['thinks']:.1%} of policy",
    }
    write_json(folder / TRAINING_FILE, {**training, **gate})
