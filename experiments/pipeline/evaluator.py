"""An evaluator for Atlas: a vision-language model that judges whether a query and a target match, in two parts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import set_seed

from experiments.pipeline.prior import draw_of
from experiments.pipeline.stage import ON_CPU, MadeOf, ids_of, run_stage
from experiments.pipeline.tasks import of_tasks
from mmemb_r1.atlas import Atlas
from mmemb_r1.training.base_trainer import last_checkpoint
from mmemb_r1.training.selection.evaluator_trainer import (
    EvaluatorConfig,
    EvaluatorTrainer,
    match_examples,
    save_evaluator,
)
from mmemb_r1.training.vlm import load_vlm

# What a model of this size can learn to judge: no digits, no comparisons. In percent.
EVALUATOR_TASK_WEIGHTS = {
    "picture-name-flag": 18.0,
    "picture-name-object": 14.0,
    "name-picture": 4.0,
    "picture-name-de": 1.0,
    "picture-name-es": 1.0,
    "picture-name-fr": 1.0,
    "fact-capital": 6.0,
    "fact-currency": 6.0,
    "fact-tld": 6.0,
    "fact-language": 5.0,
    "fact-region": 6.0,
    "fact-country": 2.0,
    "flag-capital": 5.0,
    "flag-currency": 5.0,
    "flag-tld": 5.0,
    "flag-language": 5.0,
    "flag-region": 5.0,
    "fact-flag": 2.0,
    "neighbour-capital": 1.5,
    "neighbour-currency": 1.5,
}
_COMMON = {
    "prompt": "evaluator-short",
    "per_device_train_batch_size": 32,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.01,
    "draws_per_pair": 16,
    "logging_steps": 50,
    "save_steps": 200,
    "task_weights": EVALUATOR_TASK_WEIGHTS,
}
# In this order. The same numbers, with their reasons, are in examples/atlas-evaluator-reading.yaml and
# atlas-evaluator.yaml; a test compares them.
PARTS: dict[str, dict[str, Any]] = {
    "atlas-evaluator-reading": {
        **_COMMON,
        "max_steps": 1800,
        "learning_rate": 1.5e-4,
        "warmup_steps": 120,
        "none_share": 0.001,
        "right_share": 0.999,
        "wrong_share": 0.0,
        "blind_share": 1.0,
    },
    "atlas-evaluator": {
        **_COMMON,
        "max_steps": 500,
        "learning_rate": 1.0e-4,
        "warmup_steps": 30,
        "none_share": 0.25,
        "right_share": 0.7,
        "wrong_share": 0.05,
        "blind_share": 0.5,
        "tempting_share": 0.3,
        "augment_pictures": True,
    },
}
NUM_WORDINGS = 4


def train_evaluator(
    atlas: Atlas,
    start: Path,
    output: Path,
    seed: int,
    parts: Mapping[str, Mapping[str, Any]] = PARTS,
    made_of: MadeOf | None = None,
) -> Path:
    """
    Train the parts one after another, each if it is not there yet, on `train` with several wordings of its rationales.

    Args:
        atlas: the Atlas.
        start: an mmemb-r1 checkpoint that knows pictures and facts.
        output: gets a folder per part, the wordings and checkpoints.
        seed: of everything.
        parts: name -> fields of [`EvaluatorConfig`].
        made_of: stages that the first part is made of.

    Returns:
        The folder of the last part.
    """
    right = draw_of("correct", NUM_WORDINGS, atlas, atlas.pairs["train"], output / "right", seed)
    needs = dict(made_of or {})
    for part, fields in parts.items():
        folder, checkpoints = output / part, output / "checkpoints" / part
        make = partial(_train_part, atlas, right, start, fields, checkpoints, seed)
        run_stage(folder, {**fields, "seed": seed}, make, made_of=needs, checkpoints=checkpoints)
        needs |= ids_of({part: folder})
        start = folder
    return start


def _train_part(
    atlas: Atlas, right: Dataset, start: Path, fields: Mapping[str, Any], checkpoints: Path, seed: int, folder: Path
) -> None:
    """One part, measured on the tasks of `validation` that it was taught."""
    config = EvaluatorConfig(output_dir=str(checkpoints), seed=seed, **{**ON_CPU, **fields})
    set_seed(seed)
    vlm, processor = load_vlm(start, device="cpu")
    examples = match_examples(atlas.pairs["train"], config, rationales=right)
    trainer = EvaluatorTrainer(vlm.train(), config, examples, processor)
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    known = of_tasks(atlas.pairs["validation"], fields["task_weights"])
    save_evaluator(trainer, folder, trainer.measure(known))
