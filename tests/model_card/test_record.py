from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from mmemb_r1.model_card import build_model_card, write_model_card
from mmemb_r1.model_card.record import gate_is_trained, recorded_base_model

INIT = {"phase": "init", "base model": "org/vlm", "training": "none"}
JOINT = {"phase": "joint", "gate": "not trained", "pairs": 12, "pairs table": "a.parquet, SHA-256 01"}
WARMED = {**JOINT, "gate": "trained"}
GATE = {"phase": "gate", "pairs": 4}
GRPO = {"phase": "adaptive (GRPO)", "pairs": 5}


def record(*phases):
    return {**phases[-1], **({"before": list(phases[:-1])} if len(phases) > 1 else {})}


@pytest.mark.parametrize(
    ("phases", "trained"),
    [
        ([INIT], False),
        ([INIT, JOINT], False),
        ([JOINT], None),
        ([INIT, {"phase": "joint"}], None),
        ([INIT, WARMED], True),
        ([INIT, JOINT, GATE], True),
        ([JOINT, GRPO], True),
        ([GATE, JOINT], True),
        ([{"steps": 3}], None),
    ],
)
def test_whether_the_gate_was_trained(tiny_checkpoint, phases, trained):
    facts = record(*phases)
    assert gate_is_trained(facts) is trained
    text = build_model_card(tiny_checkpoint, training=facts)
    assert ("decides for each input whether to reason first." in text) is (trained is True)
    assert ("Its gate was never trained" in text) is (trained is False)
    assert ("Whether its gate was trained is not recorded" in text) is (trained is None)


def test_every_phase_is_told_and_what_is_before_them(tiny_checkpoint):
    text = build_model_card(tiny_checkpoint, training=record(JOINT, GATE, GRPO))
    assert "| phase | adaptive (GRPO) |" in text
    assert text.index("### Before it: gate") < text.index("### Before it: joint")
    assert "| pairs table | a.parquet, SHA-256 01 |" in text
    assert "What was trained before the first phase recorded here is not recorded." in text
    whole = build_model_card(tiny_checkpoint, training=record(INIT, JOINT, GATE, GRPO))
    assert "### Before it: init" in whole and "What was trained before" not in whole


def test_the_base_model_is_the_recorded_one(checkpoint):
    write_model_card(checkpoint, training=record(INIT, JOINT))
    card = ModelCard((checkpoint / "README.md").read_text(encoding="utf-8"))
    assert card.data.base_model == "org/vlm"
    assert "base model" not in card.text.split("Not stated: ")[1].splitlines()[0]
    with pytest.raises(ValueError, match="base_model is 'org/other', but the record of the training names org/vlm"):
        build_model_card(checkpoint, base_model="org/other")
    both = ModelCard(build_model_card(checkpoint, base_model=["org/vlm", "org/other"]))
    assert both.data.base_model == ["org/vlm", "org/other"]
    assert recorded_base_model({**INIT, "base model": "not recorded: it was read from a folder"}) is None
    assert recorded_base_model({}) is None
