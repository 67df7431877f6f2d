from __future__ import annotations

import copy
import json

import pytest
import torch
from datasets import Dataset

from mmemb_r1 import MMEmbR1, MMEmbR1Model
from mmemb_r1.training import JointConfig, JointTrainer
from mmemb_r1.training.losses import false_negatives, info_nce


@pytest.fixture
def arguments(tmp_path):
    return {
        "output_dir": str(tmp_path / "checkpoints"),
        "per_device_train_batch_size": 6,
        "sub_batch_size": 3,
        "max_steps": 4,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
    }


class Rows(torch.utils.data.Dataset):
    """A table in memory, pictures as they are."""

    def __init__(self, rows):
        self.rows = rows
        self.column_names = list(rows[0]) if rows else ["query", "target"]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]


def trainer(model, processor, rows, arguments, **changes):
    return JointTrainer(model, JointConfig(**{**arguments, **changes}), Rows(rows), processor)


def test_a_step_moves_every_parameter_but_the_gate(model, processor, rows, arguments):
    before = copy.deepcopy(model.state_dict())
    trainer(model, processor, rows, arguments, weight_decay=0.0).train()
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if name not in moved} == {"gate.output.weight", "gate.output.bias"}


def test_the_losses_fall(model, processor, rows, arguments):
    run = trainer(model, processor, rows, arguments, max_steps=60, temperature=0.1)
    run.train()
    logs = [log for log in run.state.log_history if "nce_10" in log]
    assert {"nce_00", "nce_10", "nce_01", "nce_11", "rationale_query", "rationale_target"} <= set().union(*logs)
    for name in ("nce_10", "rationale_query"):
        assert sum(log[name] for log in logs[-5:]) < 0.7 * sum(log[name] for log in logs[:5])


def test_the_loss_is_the_sum_of_its_parts(model, processor, rows, arguments):
    changes = {"rationale_weight": 2.0, "direct_reasoned_weight": 0.0, "reasoned_reasoned_weight": 0.0}
    run = trainer(model, processor, rows, arguments, temperature=0.1, **changes)
    batch = run.data_collator(rows[:6])
    with torch.no_grad():
        loss, outputs = run.compute_loss(model, batch, return_outputs=True)
    query, target = outputs["query"], outputs["target"]
    targets = target.embeddings[batch["target_index"], 0]
    ignore = false_negatives(batch["query_keys"], batch["target_index"])
    nce = [info_nce(query.embeddings[:, path] @ targets.T / 0.1, ignore, query.path_mask[:, path]) for path in (0, 1)]
    assert loss.item() == pytest.approx((sum(nce) - 2 * query.rationale_logps.mean()).item(), rel=1e-5)


def test_matryoshka_adds_the_truncated_terms(model, processor, rows, arguments):
    batch = trainer(model, processor, rows, arguments).data_collator(rows[:6])
    with torch.no_grad():
        whole = trainer(model, processor, rows, arguments, rationale_weight=0.0).compute_loss(model, batch)
        twice = trainer(model, processor, rows, arguments, rationale_weight=0.0, matryoshka_dims=[32]).compute_loss(
            model, batch
        )
    assert twice.item() == pytest.approx(2 * whole.item(), rel=1e-5)  # 32 is the full width


def test_without_rationales_only_the_direct_path_is_trained(model, processor, rows, arguments):
    run = trainer(model, processor, rows, arguments, use_rationales=False)
    run.train()
    logged = set().union(*run.state.log_history)
    assert "nce_00" in logged and not logged & {"nce_10", "nce_01", "nce_11", "rationale_query"}


def test_two_accumulated_batches_give_the_gradient_of_one(tiny, processor, rows, arguments):
    def gradient(steps):
        model = copy.deepcopy(tiny[0])
        changes = {"per_device_train_batch_size": 6, "sub_batch_size": 6, "gradient_accumulation_steps": steps}
        # one task of six rows: every batch holds all of them
        run = trainer(
            model, processor, rows[:6], arguments, max_steps=1, learning_rate=0.0, max_grad_norm=0.0, **changes
        )
        gradients = []
        run.create_optimizer()
        run.optimizer.register_step_pre_hook(
            lambda *_: gradients.append(model.vlm.get_input_embeddings().weight.grad.clone())
        )
        run.train()
        return gradients[0]

    once, twice = gradient(1), gradient(2)
    assert once.abs().max() > 1e-3
    assert torch.allclose(once, twice, atol=1e-4 * once.abs().max().item())


def test_epochs_see_the_pairs_in_different_orders(model, processor, rows, arguments):
    run = trainer(model, processor, rows, arguments, max_steps=-1, num_train_epochs=2, per_device_train_batch_size=6)
    seen, collate = [], run.data_collator
    run.data_collator = lambda batch: seen.append([row["query"].get("text") for row in batch]) or collate(batch)
    run.train()
    assert len(seen) >= 6 and seen[:3] != seen[3:6]


def test_a_resumed_run_goes_on_to_the_same_weights(tiny, processor, rows, arguments, tmp_path):
    from transformers import TrainerCallback

    class Killed(Exception):
        pass

    class Kill(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise Killed

    arguments |= {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    whole, part = copy.deepcopy(tiny[0]), copy.deepcopy(tiny[0])
    trainer(whole, processor, rows, arguments, output_dir=str(tmp_path / "whole")).train()
    run = trainer(part, processor, rows, arguments)
    run.add_callback(Kill())
    with pytest.raises(Killed):
        run.train()
    resumed = trainer(copy.deepcopy(tiny[0]), processor, rows, arguments)
    resumed.train(resume_from_checkpoint=True)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_what_was_trained_loads_and_embeds(model, processor, rows, arguments, tmp_path):
    run = trainer(model, processor, rows, arguments)
    run.train()
    run.save_model(str(tmp_path / "trained"))
    again = MMEmbR1Model.from_pretrained(str(tmp_path / "trained"))
    inputs = ["say red", {"text": "color?", "image": rows[0]["query"]["image"]}]
    ours = MMEmbR1.from_model(run.model.eval(), processor).encode(inputs, reasoning="always", max_reasoning_tokens=4)
    theirs = MMEmbR1.from_model(again.eval(), processor).encode(inputs, reasoning="always", max_reasoning_tokens=4)
    assert abs(ours - theirs).max() == 0
    assert "joint" in json.loads((tmp_path / "trained" / "config.json").read_text()).get("model_tags", ["joint"])


def test_a_table_without_the_columns_is_refused(model, processor, arguments):
    with pytest.raises(ValueError, match="lacks the columns .'target'.; it has .'query'."):
        JointTrainer(model, JointConfig(**arguments), Dataset.from_dict({"query": ["a"]}), processor)


def test_an_empty_table_is_refused(model, processor, arguments):
    with pytest.raises(ValueError, match="The pairs table is empty"):
        trainer(model, processor, [], arguments)
