"""The quickstart's stages. Each writes its result whole and is skipped when that is there, so a killed run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers import set_seed

from mmemb_r1 import MMEmbR1, MMEmbR1Model
from mmemb_r1._files import claim, made_whole, replaced_file
from mmemb_r1._inputs import given_parts
from mmemb_r1.atlas import Atlas, atlas_texts, augment, build_atlas
from mmemb_r1.evaluation import evaluate, load_results, save_results
from mmemb_r1.evaluation.runner import CandidateSet, embed_candidates
from mmemb_r1.model_card import write_model_card
from mmemb_r1.modeling.sentence_mmemb_r1 import model_inputs
from mmemb_r1.quickstart.recipe import Recipe
from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training import JointConfig, JointTrainer
from mmemb_r1.training.checkpoints import last_checkpoint
from mmemb_r1.training.gate_warm_start import alignment, fit_gate
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
    if not made_whole(trained, lambda folder: train(atlas, recipe, folder, output / "checkpoints")):
        console.print(f"{trained} is there already.")
    console.rule("3. The gate: when does thinking pay?")
    if not made_whole(checkpoint, lambda folder: add_gate(atlas, recipe, trained, folder, console)):
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


def untrained_model(atlas: Atlas, recipe: Recipe) -> tuple[MMEmbR1Model, Any]:
    """The tiny backbone with a tokenizer of its own, as an embedding model, all weights random."""
    vlm, processor = build_tiny_vlm(
        "qwen3_vl", texts=atlas_texts(atlas), vocab_size=recipe.vocab_size, seed=recipe.seed, **recipe.backbone
    )
    return MMEmbR1Model.from_vlm(vlm, processor, **recipe.model)


def joint_trainer(atlas: Atlas, recipe: Recipe, output: Path, **overrides: Any) -> JointTrainer:
    """
    The trainer of the joint phase.

    Args:
        atlas: its `train` split is trained on.
        recipe: the numbers.
        output: for checkpoints.
        **overrides: fields of [`JointConfig`], say `use_rationales=False` for the direct-only baseline.
    """
    set_seed(recipe.seed)
    model, processor = untrained_model(atlas, recipe)
    arguments = {
        "output_dir": str(output),
        "max_steps": recipe.steps,
        "warmup_steps": max(1, recipe.steps // 15),
        "lr_scheduler_type": "cosine",
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "report_to": [],
        "save_total_limit": 1,
        "seed": recipe.seed,
        **recipe.training,
        **overrides,
    }
    return JointTrainer(
        model=model.train(),
        args=JointConfig(**arguments),
        train_dataset=atlas.pairs["train"],
        processing_class=processor,
        augment=augment,
    )


def train(atlas: Atlas, recipe: Recipe, folder: Path, checkpoints: Path, **overrides: Any) -> None:
    """Run the joint phase, from the last checkpoint if there is one, and save the model in `folder`."""
    trainer = joint_trainer(atlas, recipe, checkpoints, **overrides)
    start = time.perf_counter()
    last = last_checkpoint(checkpoints)
    trainer.train(resume_from_checkpoint=last)
    seconds = time.perf_counter() - start
    MMEmbR1.from_model(trainer.model.eval(), trainer.processing_class).save_pretrained(str(folder))
    facts = {
        "steps": trainer.state.global_step,
        "pairs per step": trainer.args.train_batch_size,
        "seconds": round(seconds, 1),
        "parameters": trainer.model.num_parameters(),
        "threads": torch.get_num_threads(),
    }
    if last:
        facts |= {"resumed from": Path(last).name, "seconds": f"{seconds:.1f} since then"}
    _write_facts(folder, facts)


def _write_facts(folder: Path, facts: dict[str, Any]) -> None:
    (folder / TRAINING_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def add_gate(atlas: Atlas, recipe: Recipe, trained: Path, folder: Path, console: Console) -> None:
    """Fit the gate on the `policy` split, whose compositions the embedder never saw, and save the model with it."""
    model = MMEmbR1(str(trained), device="cpu")
    policy = atlas.pairs["policy"]
    gap = utility_gap(model, policy, atlas.candidates)
    hidden = gate_inputs(model, [given_parts(query) for query in policy["query"]])
    facts = fit_gate(model[0].model.gate, hidden, gap, cost=recipe.gate_cost)
    console.print(
        f"thinking pays on {facts['pays']:.0%} of the policy split; the gate chooses it on {facts['thinks']:.0%}"
    )
    model.save_pretrained(str(folder))
    training = json.loads((trained / TRAINING_FILE).read_text(encoding="utf-8"))
    gate = {
        "thinking pays on": f"{facts['pays']:.1%} of policy",
        "the gate thinks on": f"{facts['thinks']:.1%} of policy",
    }
    _write_facts(folder, {**training, **gate})


def utility_gap(model: MMEmbR1, pairs: Any, candidates: Any, batch_size: int = 128) -> torch.Tensor:
    """`(N,)` how much thinking improves each query's alignment with its target among its candidates."""
    queries = [given_parts(query) for query in pairs["query"]]
    direct, reasoned = (
        torch.from_numpy(model.encode(queries, reasoning=mode, batch_size=batch_size)) for mode in ("never", "always")
    )
    sets = embed_candidates(model, candidates, set(pairs["candidate_set"]), batch_size)
    return aligned(pairs, reasoned, sets) - aligned(pairs, direct, sets)


def aligned(pairs: Any, queries: torch.Tensor, sets: Mapping[str, CandidateSet]) -> torch.Tensor:
    """`(N,)` probability of each query's target among the candidates of its set; `queries` `(N, D)`."""
    found = torch.zeros(len(queries))
    names, targets = np.array(pairs["candidate_set"]), np.array(pairs["target_id"])
    for name in set(names.tolist()):
        rows, answers = np.flatnonzero(names == name), sets[name]
        positives = torch.from_numpy(answers.places(targets[rows].tolist()))
        found[rows] = alignment(queries[rows], torch.from_numpy(answers.embeddings), positives)
    return found


@torch.no_grad()
def gate_inputs(model: MMEmbR1, queries: list[Any], batch_size: int = 128) -> torch.Tensor:
    """`(N, H)` hidden states at the first `<|embed|>`, which the gate reads."""
    states = []
    for start in range(0, len(queries), batch_size):
        features = model_inputs(model.preprocess(queries[start : start + batch_size]))
        states.append(model[0].model(**features).last_hidden_state[:, -1])  # prompts are padded on the left
    return torch.cat(states)
