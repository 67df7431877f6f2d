"""The proof at conversion: that it finds what is wrong, and what is said and saved of it."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import main
from mmemb_r1.recipes import conversion, convert, load_recipe
from mmemb_r1.recipes.proof import proof_inputs

pytestmark = pytest.mark.usefixtures("one_thread")


def test_ten_inputs_of_all_kinds():
    inputs = proof_inputs(load_recipe("vlm2vec-v2"))
    assert len(inputs) == 10
    kinds = {tuple(sorted(value)) for value in inputs.values()}
    assert kinds == {
        ("text",),
        ("image",),
        ("image", "text"),
        ("instruction", "text"),
        ("image", "instruction", "text"),
    }
    assert all(value.get("text") or "image" in value for value in inputs.values())
    assert "nothing" in proof_inputs(load_recipe("qwen3-vl-embedding"))


WRONG = {  # what a converter could get wrong: what the model is made by, while the plain calls follow the recipe
    "position": lambda recipe: dataclasses.replace(recipe, read=dataclasses.replace(recipe.read, position="marker")),
    "instruction": lambda recipe: dataclasses.replace(
        recipe, prompt=dataclasses.replace(recipe.prompt, instruction_ends=None)
    ),
    "order": lambda recipe: dataclasses.replace(recipe, prompt=dataclasses.replace(recipe.prompt, separator=" ")),
    "state": lambda recipe: dataclasses.replace(recipe, read=dataclasses.replace(recipe.read, state="unnormed")),
}


SLOW = [pytest.param(part, marks=pytest.mark.slow) for part in WRONG if part != "position"]


@pytest.mark.parametrize("part", ["position", *SLOW])
def test_a_wrong_conversion_is_found_and_not_saved(part, stand_in, tmp_path, monkeypatch):
    plain = conversion.plain_vectors
    right = load_recipe("qwen3-vl-embedding")
    monkeypatch.setattr(conversion, "plain_vectors", lambda _, *model: plain(right, *model))
    converted = convert(str(stand_in(right.name)), WRONG[part](right))
    assert not converted.proof.holds and converted.proof.largest > 1e-3
    with pytest.raises(ValueError, match="does not give the vectors of the recipe .* Nothing is saved"):
        converted.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    converted.save(tmp_path / "model", force=True)
    assert json.loads((tmp_path / "model" / "proof.json").read_text(encoding="utf-8"))["holds"] is False


def test_what_is_no_number_is_no_proof(stand_in, tmp_path):
    """Weights of pictures alone are damaged: vectors of texts, which come first, are right."""
    shutil.copytree(stand_in("qwen3-vl-embedding"), tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    weights = load_file(file)
    weights[next(name for name in weights if "visual.merger" in name)].fill_(torch.nan)
    save_file(weights, file, {"format": "pt"})
    converted = convert(str(tmp_path / "copy"), "qwen3-vl-embedding")
    proof = converted.proof
    assert proof.direct["text"] < 1e-5 and math.isnan(proof.direct["picture"])
    assert math.isnan(proof.largest) and math.isnan(proof.cosine) and not proof.holds
    with pytest.raises(ValueError, match="the worst of the direct ones for 'picture'"):
        converted.save(tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "weights"])
def test_weights_of_16_bits(dtype, stand_in, tmp_path):
    """They are compared in float32 unless asked otherwise, and saved as they were."""
    converted = convert(str(stand_in("ume-r1")), dtype="bfloat16", proof_dtype=dtype)
    assert converted.proof.dtype == ("float32" if dtype == "float32" else "bfloat16")
    assert converted.proof.holds and len(converted.proof.reasoned) == 3
    converted.save(tmp_path / "model")
    model = MMEmbR1(str(tmp_path / "model"), device="cpu")[0].model
    assert model.dtype == torch.bfloat16
    before = torch.nn.Module.state_dict(convert(str(stand_in("ume-r1")), dtype="bfloat16").model[0].model.vlm)
    assert all(torch.equal(weight, before[name]) for name, weight in model.vlm.state_dict().items())


class TestInit:
    def test_recognises_converts_and_says_so(self, stand_in, tmp_path, capsys):
        folder, output = stand_in("ume-r1"), tmp_path / "model"
        assert main(["init", "--vlm", str(folder), "--output", str(output), "--set", "max_reasoning_tokens=64"]) == 0
        printed = capsys.readouterr().out
        for said in (
            "recognised as ume-r1",
            "read at <disc_emb>, reasoned ones at <gen_emb>",
            "do not compare with one another",
            "on 10 inputs in float32, within what rounding explains",
            f"saved a checkpoint with the embedder's direct vectors to {output}",
        ):
            assert said in printed
        proof = json.loads((output / "proof.json").read_text(encoding="utf-8"))
        assert proof["largest"] < 1e-5 and len(proof["direct"]) == 10 and len(proof["reasoned"]) == 3
        assert set(proof["versions"]) == {"mmemb-r1", "transformers", "torch"}
        card = (output / "README.md").read_text(encoding="utf-8")
        assert "| recipe | ume-r1 |" in card and "largest difference" in card
        assert MMEmbR1(str(output), device="cpu")[0].model.config.max_reasoning_tokens == 64

    def test_a_recipe_of_another_checkpoint_is_told(self, stand_in, tmp_path, capsys):
        arguments = ["init", "--vlm", str(stand_in("gme-qwen2-vl")), "--output"]
        assert main([*arguments, str(tmp_path / "one"), "--recipe", "qwen3-vl-embedding"]) == 0
        assert "shows that this is its recipe" in capsys.readouterr().out
        assert main([*arguments, str(tmp_path / "two"), "--recipe", "gme-qwen2-vl"]) == 0
        assert "shows that this is its recipe" not in capsys.readouterr().out

    def test_a_recipe_of_ones_own_and_none(self, stand_in, tmp_path, capsys):
        file = tmp_path / "own.yaml"
        file.write_text('source: mine\nprompt: {ending: "<|im_end|>"}\nread: {marker: <emb>}\n', encoding="utf-8")
        arguments = ["init", "--vlm", str(stand_in("embed-rl")), "--output"]
        assert main([*arguments, str(tmp_path / "own"), "--recipe", str(file)]) == 0
        assert "taken as own" in capsys.readouterr().out
        assert main([*arguments, str(tmp_path / "none"), "--recipe", "none"]) == 0
        assert "saved an untrained checkpoint" in capsys.readouterr().out
        assert not (tmp_path / "none" / "proof.json").exists()
