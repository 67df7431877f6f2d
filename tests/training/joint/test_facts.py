from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from datasets import Dataset

from mmemb_r1.training import JointConfig
from mmemb_r1.training.joint.data import SelectedRationales
from mmemb_r1.training.joint.facts import joint_facts
from mmemb_r1.training.vlm import weights_fingerprint


@pytest.fixture
def arguments(tmp_path):
    def build(**changes):
        sizes = {"per_device_train_batch_size": 6, "sub_batch_size": 3, "activation_checkpointing": False}
        return JointConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **{**sizes, **changes})

    return build


@pytest.fixture(scope="session")
def selected_table():
    rows = [("pair 0", "w1"), ("pair 0", "w2"), ("pair 1", "w1"), ("elsewhere", "w1")]
    columns = {"pair_id": [pair_id for pair_id, _ in rows], "worker": [worker for _, worker in rows]}
    return Dataset.from_dict({**columns, "side": ["query"] * 4, "text": ["x"] * 4})


def test_what_is_told(tiny, rows, arguments):
    facts = joint_facts(tiny[0], arguments(gradient_accumulation_steps=4, seed=7), rows, None)
    assert facts == {
        "phase": "joint",
        "started from weights": weights_fingerprint(tiny[0]),
        "pairs": 18,
        "tasks": "name 6, plain 6, show 6",
        "rationales": "those of the pairs table",
        "loss weights": "(0,0) 1, (0,1) 0.5, (1,0) 1, (1,1) 0.5; rationale 1; gate 0",
        "temperature": 0.02,
        "pairs per step": 24,
        "negatives": "5 in batch, 0 hard ones per pair",
        "learning rate": arguments().learning_rate,
        "seed": 7,
        "gate": "not trained",
    }
    assert json.loads(json.dumps(facts)) == facts


def test_weights_of_tasks_in_place_of_their_numbers(tiny, rows, arguments):
    weights = {"name": 0.5, "plain": 0, "show": 2}
    facts = joint_facts(tiny[0], arguments(task_weights=weights), rows, None)
    assert facts["tasks"] == "name 0.5, show 2"
    assert "tasks" not in joint_facts(tiny[0], arguments(), rows.remove_columns("task"), None)


def test_which_rationales(tiny, rows, arguments, selected_table):
    def told(pairs=rows, selected=None, **changes):
        return joint_facts(tiny[0], arguments(**changes), pairs, selected)["rationales"]

    workers = SelectedRationales(selected_table)
    assert told(selected=workers) == "4 selected ones, for 2 of the 18 pairs; by worker: w1 3, w2 1"
    best = SelectedRationales(selected_table.remove_columns("worker"), best_only=True)
    assert told(selected=best) == "4 selected ones, for 2 of the 18 pairs, of each the best alone"
    nameless = SelectedRationales(selected_table.remove_columns("worker"))
    assert told(selected=nameless) == "4 selected ones, for 2 of the 18 pairs"
    assert told(selected=workers, use_rationales=False) == "none: the direct path alone"
    bare = rows.remove_columns(["query_rationale", "target_rationale"])
    assert told(bare) == "none: the pairs table has none"


def test_options_that_are_not_the_usual_ones(tiny, rows, arguments):
    changes = {"freeze_vision_tower": True, "num_hard_negatives": 2, "gate_weight": 0.5, "rationale_weight": 2.0}
    peft_config = SimpleNamespace(r=8, lora_alpha=16)
    facts = joint_facts(tiny[0], arguments(**changes), rows, None, peft_config)
    assert facts["vision tower"] == "not trained"
    assert facts["adapters"] == "LoRA, rank 8, alpha 16"
    assert facts["gate"] == "trained" and "pictures" not in facts
    assert joint_facts(tiny[0], arguments(augment_pictures=True), rows, None)["pictures"] == "augmented"
    assert facts["negatives"] == "5 in batch, 2 hard ones per pair"
    assert facts["loss weights"].endswith("; rationale 2; gate 0.5")
    changes = {"symmetric_loss": False, "one_sided_reasoning": True, "task_size_exponent": 0.5}
    facts = joint_facts(tiny[0], arguments(**changes), rows, None)
    assert facts["loss weights"].endswith(
        "; from queries to targets alone; one side with a rationale is enough for (1,1)"
    )
    assert facts["tasks"] == "name 6, plain 6, show 6; drawn by their size to the power of 0.5"


def test_nothing_of_this_machine(tiny, rows, arguments, tmp_path):
    assert str(tmp_path) not in str(joint_facts(tiny[0], arguments(), rows, None))
