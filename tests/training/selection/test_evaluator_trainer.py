"""The evaluator learns to judge, resumes, and saves what it was asked with."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training.selection.evaluator import Trial
from mmemb_r1.training.selection.evaluator_trainer import (
    EvaluatorConfig,
    EvaluatorTrainer,
    match_examples,
    save_evaluator,
)
from mmemb_r1.training.selection.vlm_evaluator import VLMEvaluator

WORDS = ("red", "green", "blue", "white")


@pytest.fixture(scope="module")
def pairs():
    rows = [
        {
            "pair_id": word,
            "query": {"text": f"{word}?"},
            "target": {"text": word},
            "query_rationale": [f"It is {word}."],
        }
        for word in WORDS
    ]
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def backbone():
    return build_tiny_vlm("qwen3_vl", texts=["yes no red? green? blue? white? It is red. green. blue. white."])


@pytest.fixture
def trainer(backbone, pairs, tmp_path):
    def make(folder="run", **overrides):
        vlm, processor = backbone
        options = {
            "output_dir": str(tmp_path / folder),
            "prompt": "evaluator-short",
            "max_steps": 4,
            "per_device_train_batch_size": 8,
            "learning_rate": 3e-3,
            "use_cpu": True,
            "bf16": False,
            "report_to": [],
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
        }
        args = EvaluatorConfig(**options | overrides)
        return EvaluatorTrainer(copy.deepcopy(vlm).train(), args, match_examples(pairs, args), processor)

    return make


def test_loss_is_the_cross_entropy_of_the_match_logit(trainer):
    made = trainer()
    batch = made.data_collator([made.train_dataset[index] for index in range(6)])
    labels = batch["labels"].clone()
    loss, outputs = made.compute_loss(made.model, dict(batch), return_outputs=True)
    probability = outputs["logits"].sigmoid()
    expected = -(labels * probability.log() + (1 - labels) * (1 - probability).log()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert 0 < labels.sum() < 6, "the draw holds both kinds"


@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm"])  # whose forward takes what scales the loss, or not
def test_accumulated_batches_give_the_gradient_of_one(pairs, tmp_path, family):
    vlm, processor = build_tiny_vlm(family, texts=["yes no red? green? blue? white? It is red. green. blue. white."])
    norms = []
    for steps in (1, 4):
        args = EvaluatorConfig(
            output_dir=str(tmp_path), prompt="evaluator-short", max_steps=1, per_device_train_batch_size=8 // steps,
            gradient_accumulation_steps=steps, use_cpu=True, bf16=False, report_to=[], save_strategy="no",
            logging_steps=1, disable_tqdm=True,
        )  # fmt: skip
        made = EvaluatorTrainer(copy.deepcopy(vlm).train(), args, match_examples(pairs, args), processor)
        made.train()
        norms.append(made.state.log_history[0]["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


@pytest.mark.slow
def test_it_learns_what_was_learnable(trainer, pairs):
    made = trainer(max_steps=150, per_device_train_batch_size=16, learning_rate=2e-3, draws_per_pair=1000)
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert sum(losses[-10:]) / 10 < 0.6 < sum(losses[:10]) / 10
    measured = made.measure(pairs, size=400)
    assert measured["accuracy_right"] > 0.7
    assert measured["n_none"] + measured["n_right"] + measured["n_wrong"] == 400


def test_logged_accuracy_is_of_the_kinds_that_occurred(trainer):
    made = trainer(none_share=1.0, right_share=0.0, wrong_share=0.0)
    made.train()
    entries = [entry for entry in made.state.log_history if "loss" in entry]
    assert all("accuracy_none" in entry and "accuracy_right" not in entry for entry in entries)


@pytest.mark.slow
def test_a_resumed_run_is_the_undisturbed_run(trainer):
    whole = trainer("whole", max_steps=4)
    whole.train()
    trainer("cut", max_steps=4, save_strategy="steps", save_steps=2).train()
    resumed = trainer("cut", max_steps=4, save_strategy="steps", save_steps=2)
    checkpoint = f"{resumed.args.output_dir}/checkpoint-2"
    resumed.train(resume_from_checkpoint=checkpoint)
    for (name, expected), value in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(expected, value), name


def test_saved_evaluator_judges_as_the_trained_model_did(trainer, tmp_path, new_modes):
    made = trainer(max_steps=2, save_strategy="steps", save_steps=2)
    made.train()
    save_evaluator(made, tmp_path / "evaluator", {"accuracy_none": 0.5})
    for folder in (tmp_path / "evaluator", Path(made.args.output_dir)):
        new_modes(folder)
    example = made.train_dataset[0]
    inputs = made.data_collator([example])
    inputs = {name: value for name, value in inputs.items() if name not in ("labels", "kinds")}
    with torch.inference_mode():
        expected = made.match_logits(made.model, inputs)
    evaluator = VLMEvaluator(str(tmp_path / "evaluator"), device="cpu")
    assert evaluator.definition["prompt"].startswith("{query} = {target}?"), "the words that it was trained with"
    trial = Trial("query", example["query"], [example["target"]], [example["rationale"]])
    (judged,) = evaluator.match_logits([trial])
    assert judged.shape == (1, 1)
    assert judged.item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"none_share": -1.0}, "none_share=-1.0; allowed: 0 or more"),
        ({"none_share": 0.0}, "none_share=0; allowed: more than 0"),
        ({"draws_per_pair": 0}, "draws_per_pair=0; allowed: 1 or more"),
    ],
)
def test_bad_config_is_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        EvaluatorConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **fields)
