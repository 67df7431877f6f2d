"""What `--model` and its kin say where there is no model, another kind of model, or no device for it."""

from __future__ import annotations

import pytest
from datasets import Dataset

from mmemb_r1.cli import main
from mmemb_r1.tiny import build_tiny_vlm


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    rows = [{"pair_id": f"p{n}", "query": {"text": f"q{n}"}, "target": {"text": f"t{n}"}} for n in range(4)]
    Dataset.from_list(rows).to_parquet(str(folder / "pairs.parquet"))
    (folder / "in.jsonl").write_text('"Lima"\n', encoding="utf-8")
    for part in build_tiny_vlm("smolvlm"):
        part.save_pretrained(folder / "vlm")
    return folder


COMMANDS = {  # of every command that loads a model by its name; `MODEL` is that name
    "encode": "encode --model MODEL --input in.jsonl --output out.npy",
    "evaluate": "evaluate --model MODEL --pairs pairs.parquet",
    "diagnose": "diagnose --model MODEL --pairs pairs.parquet",
    "pairs": "pairs check pairs.parquet --model MODEL",
    "joint": "train joint --model MODEL --pairs pairs.parquet --output out --cpu",
    "gate": "train gate --model MODEL --pairs pairs.parquet --output out",
    "adaptive": "train adaptive --model MODEL --pairs pairs.parquet --output out --cpu",
    "init": "init --vlm MODEL --output out",
    "train-evaluator": "train-evaluator --model MODEL --pairs pairs.parquet --output out --cpu",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_that_is_no_model(command, files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    for name, message in {
        "./vml": "There is no folder ./vml, and it is no Hub id, which has the form owner/name.",
        "runs/joint/model": "There is no folder runs/joint/model, and it is no Hub id",
        "in.jsonl": "in.jsonl is a file; name the folder that holds the model.",
        "org/vml": "There is no folder org/vml here, and the Hub's cache does not hold that model either; the Hub was",
    }.items():
        assert main(COMMANDS[command].replace("MODEL", name).split()) == 2
        shown = capsys.readouterr()
        assert shown.err.splitlines()[-1].startswith(f"error: {message}") and shown.out == ""
    assert not (files / "out").exists()


NEEDS_INIT = [name for name in COMMANDS if name not in ("init", "train-evaluator")]


@pytest.mark.parametrize("command", NEEDS_INIT)
def test_a_vision_language_model_has_to_become_a_checkpoint(command, files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    assert main(COMMANDS[command].replace("MODEL", "vlm").split()) == 2
    assert "mmemb-r1 init --vlm vlm --output DIR" in capsys.readouterr().err.splitlines()[-1]


def test_init_takes_no_other_model(tiny_checkpoint, tmp_path, capsys):
    assert main(["init", "--vlm", str(tiny_checkpoint), "--output", str(tmp_path / "out")]) == 2
    assert "is no vision-language model" in capsys.readouterr().err
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    assert main(["init", "--vlm", str(tmp_path / "text"), "--output", str(tmp_path / "out")]) == 2
    assert "AutoModelForImageTextToText" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["encode", "evaluate", "diagnose", "gate"])
def test_a_device_that_is_not_there(command, files, tiny_checkpoint, monkeypatch, capsys):
    monkeypatch.chdir(files)
    for device in ("cuda:99", "gpu"):
        assert main([*COMMANDS[command].replace("MODEL", str(tiny_checkpoint)).split(), "--device", device]) == 2
        assert f"error: device='{device}' is not " in capsys.readouterr().err
