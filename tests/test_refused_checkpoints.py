"""What every loader refuses: weights that don't fit, pickles, other models, paths that are none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from transformers import AutoModel

from mmemb_r1 import MMEmbR1, MMEmbR1Model
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training.vlm import load_vlm

GATE, FIRST = "gate.output.weight", "vlm.model.language_model.layers.0.mlp.up_proj.weight"
LOADERS: dict[str, Callable[[str], Any]] = {
    "MMEmbR1": lambda folder: MMEmbR1(folder, device="cpu"),
    "MMEmbR1Model": MMEmbR1Model.from_pretrained,
    "AutoModel": AutoModel.from_pretrained,
    "remote AutoModel": lambda folder: AutoModel.from_pretrained(folder, trust_remote_code=True),
    "SentenceTransformer": lambda folder: SentenceTransformer(folder, trust_remote_code=True, device="cpu"),
}


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def change(checkpoint: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    edit(weights)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda weights: weights.pop(GATE), f"are missing: {GATE}"),
        (lambda weights: weights.pop(FIRST), f"are missing: {FIRST}"),
        (lambda weights: weights.update({"head.extra": torch.ones(2)}), "belong to no part of the model: .*extra"),
        (lambda weights: weights.update({GATE: torch.ones(1, 3)}), r"another shape: gate.output.weight \(1, 3\), not"),
        (lambda weights: weights[FIRST].view(-1)[5:6].fill_(float("nan")), f"NaN or infinity: {FIRST}"),
        (lambda weights: weights[GATE].view(-1)[:1].fill_(float("-inf")), f"NaN or infinity: {GATE}"),
    ],
)
def test_weights_that_do_not_fit_are_named(edit, message, load, checkpoint):
    change(checkpoint, edit)
    with pytest.raises(ValueError, match=message):
        load(str(checkpoint))


def rewrite(checkpoint: Path, name: str, **changed: Any) -> None:
    path = checkpoint / name
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changed}), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: (c / "tokenizer_config.json").write_text("{"), "tokenizer_config.json is no JSON"),
        (lambda c: (c / "config.json").write_text("[" * 5000), "config.json is no JSON"),
        (lambda c: (c / "modules.json").write_bytes(b"\xff\xfe"), "modules.json is no JSON"),
        (lambda c: (c / "model.safetensors").write_bytes(b"x" * 50), "model.safetensors is no whole safetensors file"),
        (lambda c: rewrite(c, "tokenizer.json", model=3), r"what its files hold does not fit \("),
        (lambda c: rewrite(c, "tokenizer_config.json", eos_token=5), r"what its files hold does not fit \(TypeError"),
        (lambda c: rewrite(c, "tokenizer_config.json", model_max_length={}), r"does not fit \(TypeError"),
        (lambda c: (c / "chat_template.jinja").write_text("{% if %}"), "The chat template is no template of Jinja"),
    ],
)
def test_a_damaged_file_is_named_whatever_it_makes_the_libraries_raise(damage, message, checkpoint):
    """KeyError, TypeError, SafetensorError and plain Exception of tokenizers came out, without a file's name."""
    damage(checkpoint)
    with pytest.raises(ValueError, match=message) as error:
        MMEmbR1(str(checkpoint), device="cpu")
    assert str(checkpoint) in str(error.value) or "chat template" in str(error.value)


def test_backbones_that_are_damaged_are_named_too(tmp_path):
    vlm, processor = build_tiny_vlm("qwen3_vl")
    vlm.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x" * 50)
    with pytest.raises(ValueError, match="model.safetensors is no whole safetensors file"):
        load_vlm(tmp_path)


def test_a_template_that_is_none_is_no_fault_of_an_input(tiny_checkpoint):
    model = MMEmbR1(str(tiny_checkpoint), device="cpu")
    model[0].processor.chat_template = "{% for %}"
    with pytest.raises(ValueError, match="The chat template is no template of Jinja") as error:
        model.encode(["Lima", "Quito"])
    assert not isinstance(error.value, InputError)


def test_a_projection_that_was_never_trained_is_not_made_up(checkpoint):
    with pytest.raises(ValueError, match="are missing: embedding_head.projection.weight"):
        MMEmbR1(str(checkpoint), device="cpu", config_kwargs={"embedding_dim": 16})
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "vlm_config": None}))
    with pytest.raises(ValueError, match="has no vlm_config"):
        AutoModel.from_pretrained(checkpoint)


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_an_index_that_names_a_pickle(load, checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(weights, checkpoint / "pytorch_model.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "pytorch_model.bin")}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="index names .*pytorch_model.bin, which is no safetensors file"):
        load(str(checkpoint))


def test_a_later_module_that_holds_a_pickle(thinking, tmp_path):
    MMEmbR1(modules=[thinking()[0], Dense(32, 8)], device="cpu").save_pretrained(str(tmp_path))
    assert MMEmbR1(str(tmp_path), device="cpu").encode("Lima").shape == (8,)
    weights = tmp_path / "1_Dense" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "1_Dense" / "pytorch_model.bin")
    assert MMEmbR1(str(tmp_path), device="cpu").encode("Lima").shape == (8,)  # it is not read
    weights.unlink()
    with pytest.raises(ValueError, match="1_Dense/pytorch_model.bin, a pickle"):
        MMEmbR1(str(tmp_path), device="cpu")


def test_a_vision_language_model_says_how_it_becomes_a_checkpoint(tmp_path):
    vlm, processor = build_tiny_vlm("smolvlm")
    vlm.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"no modules.json.*mmemb-r1 init --vlm {tmp_path} --output DIR"):
        MMEmbR1(str(tmp_path))
    with pytest.raises(ValueError, match=r"type '\w+', not of an mmemb-r1 checkpoint.*mmemb-r1 init"):
        MMEmbR1Model.from_pretrained(tmp_path)


def test_another_model_of_sentence_transformers(tmp_path):
    SentenceTransformer(modules=[Dense(4, 2)]).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="is no mmemb-r1 checkpoint: its first module is Dense"):
        MMEmbR1(str(tmp_path))
    with pytest.raises(ValueError, match="needs a checkpoint: a folder or a Hub id"):
        MMEmbR1()


def test_a_mistyped_path_is_not_looked_for_on_the_hub(tiny_checkpoint, tmp_path, monkeypatch, caplog):
    asked: list[Any] = []

    def ask(*arguments: Any, **options: Any) -> None:
        asked.append(arguments)
        raise OSError("asked")

    monkeypatch.setattr(SentenceTransformer, "__init__", ask)
    for name in (f"{tiny_checkpoint}x", "./modle", "modle", "runs/joint/modle", "~/modle", ""):
        with pytest.raises(ValueError, match="There is no folder .*, and it is no Hub id"):
            MMEmbR1(name)
    with pytest.raises(ValueError, match="is a file; name the folder"):
        MMEmbR1(str(tiny_checkpoint / "config.json"))
    assert not asked
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(OSError, match="There is no folder runs/modle here, and the Hub's cache does not hold that"):
        MMEmbR1("runs/modle")
    assert not asked and "no modle in the folder runs; the Hub is asked" in caplog.text


def test_a_device_that_is_not_there(tiny_checkpoint):
    for device, message in (
        ("cuda:99", "is not there: .* sees [0-9]+ CUDA devices"),
        ("gpu", "is not known; allowed"),
    ):
        with pytest.raises(ValueError, match=f"device='{device}' {message}"):
            MMEmbR1(str(tiny_checkpoint), device=device)
