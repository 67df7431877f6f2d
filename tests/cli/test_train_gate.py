from __future__ import annotations

import dataclasses
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmemb_r1 import MMEmbR1
from mmemb_r1.atlas import build_atlas
from mmemb_r1.cli import main
from mmemb_r1.training import GateConfig

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    small = {
        "size": 64,
        "num_countries": 12,
        "num_objects": 10,
        "generated_rows": 4,
        "num_drawings": 12,
        "second_font": None,
    }
    return build_atlas(tmp_path_factory.mktemp("atlas") / "small", **small).directory


@pytest.fixture(scope="module")
def checkpoint(thinking, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    thinking("qwen3_vl").save_pretrained(str(folder))
    (folder / "training.json").write_text('{"phase": "joint", "pairs": 7, "before": [{"phase": "first"}]}')
    return folder


def train(checkpoint, atlas, output, *options):
    return main(
        ["train", "gate", "--model", str(checkpoint), "--pairs", str(atlas / "pairs" / "policy.parquet"),
         "--output", str(output), "--device", "cpu", "--per-task", "2", *options]
    )  # fmt: skip


def test_a_gate_is_trained_once(checkpoint, atlas, tmp_path, capsys):
    """The checkpoint, the facts, the card with the phases before; and a second call does nothing again."""
    output, candidates = tmp_path / "run", ("--candidates", str(atlas / "candidates.parquet"))
    assert train(checkpoint, atlas, output, *candidates) == 0
    said = capsys.readouterr().out
    for part in ("held-out queries", "thinking pays", "the gate thinks", "AUC of the gate", "hit@1", "never"):
        assert part in said, part
    assert said.splitlines()[-1].startswith("next: mmemb-r1 train adaptive")
    facts = json.loads((output / "gate.json").read_text())
    assert facts["competitors"] == "candidates" and facts["pairs"] == facts["fitted"] + facts["held out"]
    record = json.loads((output / "model" / "training.json").read_text())
    assert [record["phase"], *(one["phase"] for one in record["before"])] == ["gate", "first", "joint"]
    assert MMEmbR1(str(output / "model"), device="cpu").encode("red", reasoning="auto").shape == (32,)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    assert train(checkpoint, atlas, output, *candidates) == 0
    assert capsys.readouterr().out == said
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before
    assert train(checkpoint, atlas, output, *candidates, "--batch_size", "7") == 2
    assert "config.batch_size was 32, is now 7" in capsys.readouterr().err


def test_another_fit_embeds_nothing_anew(checkpoint, atlas, tmp_path, monkeypatch):
    output, candidates = tmp_path / "run", ("--candidates", str(atlas / "candidates.parquet"))
    assert train(checkpoint, atlas, output, *candidates) == 0
    first = json.loads((output / "gate.json").read_text())
    monkeypatch.setattr(MMEmbR1, "explain", None)  # nothing can be embedded
    assert train(checkpoint, atlas, output, *candidates, "--cost", "0.5") == 0
    other = json.loads((output / "gate.json").read_text())
    assert (other["cost"], other["fit"]["cost"]) == (0.5, 0.5) and other["pays"] < first["pays"]
    assert json.loads((output / "model" / "training.json").read_text())["cost of thinking"] == 0.5
    assert train(checkpoint, atlas, output, *candidates, "--cost", "0", "--token_price", "0.5") == 0
    priced = json.loads((output / "gate.json").read_text())
    assert priced["token price"] == 0.5 and priced["pays"] == 0 and priced["measured"]["tokens"] == 0
    assert train(checkpoint, atlas, output, *candidates) == 0  # and back
    assert json.loads((output / "gate.json").read_text()) == first


def test_a_second_look_is_fitted_anew_to_what_was_embedded(checkpoint, atlas, tmp_path, monkeypatch, capsys):
    output, candidates = tmp_path / "run", ("--candidates", str(atlas / "candidates.parquet"))
    assert train(checkpoint, atlas, output, *candidates, "--second-look") == 0
    first = json.loads((output / "gate.json").read_text())
    look = first["second look"]
    config = json.loads((output / "model" / "config.json").read_text())
    assert config["second_look"] == (look["weights"] if look["saved"] else None)
    assert "with a second look" in capsys.readouterr().out
    record = json.loads((output / "model" / "training.json").read_text())
    assert record["second look"].startswith("saved" if look["saved"] else "not saved")
    monkeypatch.setattr(MMEmbR1, "explain", None)  # nothing can be embedded
    monkeypatch.setattr("mmemb_r1.training.gate_decisions.rounds_of", None)
    assert train(checkpoint, atlas, output, *candidates, "--second-look", "--holdout", "0") == 0
    other = json.loads((output / "gate.json").read_text())["second look"]
    assert other["weights"] != look["weights"] and other["judged on"] == "5-fold cross-validation"
    capsys.readouterr()
    assert train(checkpoint, atlas, output, *candidates) == 2  # what was embedded for it is another run
    assert "second_look" in capsys.readouterr().err


def test_any_pairs_table_and_options_before_yaml(checkpoint, atlas, tmp_path, capsys):
    recipe = tmp_path / "gate.yaml"
    recipe.write_text("negatives: in-batch\nbatch_size: 4\nholdout: 0\nmax_reasoning_rounds: 2\n")
    options = ("--config", str(recipe), "--tasks", "fact-capital,fact-region", "--per-task", "6", "--cost", "0.1")
    train_split = ("--pairs", str(atlas / "pairs" / "train.parquet"))
    assert train(checkpoint, atlas, tmp_path / "run", *options, *train_split) == 0
    facts = json.loads((tmp_path / "run" / "gate.json").read_text())
    assert (facts["competitors"], facts["rounds"], facts["cost"], facts["held out"]) == ("in-batch", 2, 0.1, 0)
    assert facts["pairs"] <= 12 and "none were held out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tasks", "fact-capitol"), "there is no task or group 'fact-capitol'"),
        (("--per-task", "0"), "per_task is 0; allowed: 1 or more"),
        (("--holdout", "2"), "holdout is 2.0; allowed"),
        (("--candidates", "nowhere.parquet"), "--candidates nowhere.parquet: there is no such file"),
    ],
)
def test_errors(checkpoint, atlas, tmp_path, capsys, options, message):
    assert train(checkpoint, atlas, tmp_path / "run", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists() or "holdout" in message


def test_every_field_is_a_flag_with_its_help(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "gate", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    for field in dataclasses.fields(GateConfig):
        assert f"--{field.name}" in shown and field.metadata["help"] in shown, field.name


def test_a_typo_in_yaml_names_the_fields(checkpoint, atlas, tmp_path, capsys):
    (tmp_path / "gate.yaml").write_text("holdouts: 0\n")
    assert train(checkpoint, atlas, tmp_path / "run", "--config", str(tmp_path / "gate.yaml")) == 2
    assert "GateConfig has no field 'holdouts'; did you mean 'holdout'" in capsys.readouterr().err


@pytest.mark.parametrize("rounds", ["1", "2"])
def test_a_query_that_cannot_be_read_is_named(checkpoint, tmp_path, capsys, rounds):
    rows = [
        {"pair_id": str(row), "query": {"text": f"query {row}", "image": []}, "target": {"text": f"target {row}"}}
        for row in range(5)
    ]
    rows[3]["query"]["image"] = ["missing.png"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    options = [
        "--pairs",
        str(tmp_path / "pairs.parquet"),
        "--output",
        str(tmp_path / "run"),
        "--max-reasoning-rounds",
        rounds,
    ]
    command = ["train", "gate", "--model", str(checkpoint), "--device", "cpu", "--batch-size", "2", "--holdout", "0"]
    assert main([*command, *options]) == 2
    assert "number 3 of the queries, counted from 0, can't be embedded: " in capsys.readouterr().err
