"""Retrieval that is measured while the joint phase trains."""

from __future__ import annotations

import copy
from itertools import count

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback

from mmemb_r1 import MMEmbR1
from mmemb_r1.evaluation import RetrievalEvaluator
from mmemb_r1.training import JointConfig, JointTrainer
from mmemb_r1.training.adapters import lora_config

MODES = ["never", "always", "auto"]


@pytest.fixture
def tables(rows):
    return rows.select(range(0, 18, 2)), rows.select(range(1, 18, 2))


def test_it_is_part_of_each_evaluation(make_trainer, vivid, tables, processor):
    vivid.config.max_reasoning_tokens = 4
    train, other = tables
    options = {"eval_retrieval": MODES, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1}
    trainer = make_trainer(vivid, train, eval_dataset=other, max_rationale_tokens=4, use_rationales=False, **options)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "eval_auto_hit@1" in log]
    assert len(logs) == 1 and all("eval_loss" in log for log in logs)
    measured = trainer.evaluate()
    expected = RetrievalEvaluator(other, MODES)(MMEmbR1.from_model(trainer.model.eval(), processor))
    assert {name: measured[f"eval_{name}"] for name in expected} == expected
    assert expected["always_mean_reasoning_tokens"] > 0


def test_training_is_the_same_with_it_and_without(make_trainer, tiny, tables):
    def losses(**options):
        model = copy.deepcopy(tiny[0])
        model.config.max_reasoning_tokens = 2
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.2
        trainer = make_trainer(model, tables[0], eval_dataset=tables[1], max_steps=2, **options)
        trainer.train()
        return [log["loss"] for log in trainer.state.log_history if "loss" in log]

    assert losses(eval_retrieval=["auto"], eval_strategy="steps", eval_steps=1) == losses()


@pytest.mark.parametrize("adapted", [False, True])
def test_the_best_checkpoint_is_found_by_it(tables, model, processor, on_cpu, tmp_path, adapted):
    """The second of five is best; two that are not better end the run."""
    scores, seen = [0.2, 0.6, 0.5, 0.4, 0.9], count()

    def scripted(wrapped):
        assert isinstance(wrapped, MMEmbR1)
        return {"auto_hit@1": scores[next(seen)]}

    args = JointConfig(
        **on_cpu,
        output_dir=str(tmp_path),
        per_device_train_batch_size=3,
        sub_batch_size=3,
        max_steps=5,
        learning_rate=0.01,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="auto_hit@1",
    )
    peft_config = lora_config(model, r=2) if adapted else None
    train, other = tables
    callbacks = [EarlyStoppingCallback(early_stopping_patience=2)]
    trainer = JointTrainer(
        model.train(), args, train, processor, other, peft_config=peft_config, callbacks=callbacks, evaluator=scripted
    )
    trainer.train()
    assert trainer.state.global_step == 4
    best, last = (tmp_path / f"checkpoint-{step}" for step in (2, 4))
    assert trainer.state.best_model_checkpoint == str(best) and trainer.state.best_metric == 0.6
    trainer.save_model(str(tmp_path / "end"))
    name = "adapter_model.safetensors" if adapted else "model.safetensors"
    end, second, fourth = (load_file(folder / name) for folder in (tmp_path / "end", best, last))
    assert all(torch.equal(end[key], second[key]) for key in second)
    assert any(not torch.equal(end[key], fourth[key]) for key in fourth)


def test_there_has_to_be_something_to_measure_it_on(make_trainer, model, rows):
    with pytest.raises(ValueError, match="but there are no pairs to measure it on; give an eval_dataset"):
        make_trainer(model, rows, eval_retrieval=MODES)


def test_modes_are_checked_before_training(make_trainer, model, tables):
    with pytest.raises(ValueError, match="the mode 'direct' is not known; allowed: never, always, auto"):
        make_trainer(model, tables[0], eval_dataset=tables[1], eval_retrieval=["direct"])


def test_a_batch_weighs_as_much_as_it_has_rows(make_trainer, vivid, rows):
    """transformers would weigh the last batch by what is left over of full ones, whatever it holds."""
    other = rows.select(range(7))
    sizes = {"per_device_train_batch_size": 5, "sub_batch_size": 5}
    trainer = make_trainer(vivid, rows.select(range(8, 18)), eval_dataset=other, **sizes)
    losses, terms = [], []
    vivid.eval()
    for batch in trainer.get_eval_dataloader():
        losses.append((len(batch["query"]["index"]), float(trainer.prediction_step(vivid, batch, True)[0])))
        terms.append(trainer._means["eval"].take()["nce_00"])
    assert [size for size, _ in losses] == [4, 3]
    measured = trainer.evaluate()
    assert measured["eval_loss"] == pytest.approx(sum(size * loss for size, loss in losses) / 7)
    assert measured["eval_nce_00"] == pytest.approx((4 * terms[0] + 3 * terms[1]) / 7)
