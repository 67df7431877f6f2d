from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

from huggingface_hub import constants

from mmemb_r1.training.base_trainer import with_changes, with_earlier_phases

FIRST, SECOND = {"phase": "joint", "steps": 2}, {"phase": "gate"}


def loaded_from(source, **more):
    return SimpleNamespace(config=SimpleNamespace(name_or_path=str(source)), **more)


def write(folder, facts):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def test_phases_before_are_those_of_the_folder(tmp_path):
    folder = write(tmp_path / "first", {**SECOND, "before": [FIRST]})
    now = with_earlier_phases({"phase": "adaptive"}, loaded_from(folder))
    assert now == {"phase": "adaptive", "before": [FIRST, SECOND]}
    (tmp_path / "bare").mkdir()
    assert with_earlier_phases(FIRST, loaded_from(tmp_path / "bare")) == FIRST


def test_a_model_of_the_hub_brings_its_record(tmp_path):
    home = Path(constants.HF_HUB_CACHE) / "models--org--recorded"
    write(home / "snapshots" / "0123", FIRST)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0123")
    assert with_earlier_phases(SECOND, loaded_from("org/recorded")) == {**SECOND, "before": [FIRST]}
    assert with_earlier_phases(SECOND, loaded_from("org/not-there")) == SECOND


def test_a_model_from_nowhere_has_no_record(tmp_path, monkeypatch):
    write(tmp_path, FIRST)
    monkeypatch.chdir(tmp_path)
    assert with_earlier_phases(SECOND, loaded_from("")) == SECOND


def test_what_was_trained_in_this_process_counts_before_what_lies_there(tmp_path):
    folder = write(tmp_path / "first", FIRST)
    model = loaded_from(folder, training_record={**SECOND, "before": [FIRST]})
    assert with_earlier_phases({"phase": "adaptive"}, model)["before"] == [FIRST, SECOND]


def test_two_trainers_one_after_the_other(make_trainer, model, rows, tmp_path):
    first = make_trainer(model, rows, max_steps=1)
    assert "before" not in first.facts
    first.train()
    second = make_trainer(model, rows, max_steps=1, temperature=0.5)
    assert second.facts["before"] == [{**first.facts, "steps": 1}]
    assert second.facts["temperature"] == 0.5


def test_a_run_that_goes_on_otherwise_tells_how_it_began(tmp_path):
    now = {"phase": "joint", "temperature": 0.1, "before": [{"phase": "init"}]}
    same = write(tmp_path / "same", {**now, "steps": 2})
    assert with_changes(now, same) == now
    begun = {**now, "temperature": 0.2, "steps": 2}
    other = write(tmp_path / "other", begun)
    before = {"phase": "joint", "temperature": 0.2, "steps": 2}
    assert with_changes(now, other) == {**now, "before": [{"phase": "init"}, before]}
    # and again, after the checkpoint of the changed run
    changed = write(tmp_path / "changed", {**now, "before": [{"phase": "init"}, before], "steps": 3})
    assert with_changes(now, changed)["before"] == [{"phase": "init"}, before]
    assert with_changes(now, tmp_path) == now
