"""A folder is pushed only if it is a whole checkpoint and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import struct

import numpy as np
import pytest
from transformers import AutoConfig

from mmemb_r1 import MMEmbR1
from mmemb_r1.hub import check_checkpoint

TEXTS = ["What is the capital of Peru?", "Lima"]


def test_a_saved_checkpoint_passes(checkpoint):
    (checkpoint / ".cache" / "huggingface").mkdir(parents=True)
    (checkpoint / ".cache" / "huggingface" / "notes").touch()
    (checkpoint / ".gitattributes").touch()
    (checkpoint / "assets").mkdir()
    (checkpoint / "assets" / "figure.png").write_bytes(b"\x89PNG")
    names = check_checkpoint(checkpoint)
    assert {"config.json", "model.safetensors", "sentence_mmemb_r1.py", "assets/figure.png"} <= set(names)
    assert not {".gitattributes", ".cache/huggingface/notes"} & set(names)
    assert names == sorted(names)


# What the checkpoint is without one of its files. Code is needed where this package is not installed: see TestCode.
WITHOUT = {
    "README.md": "same",  # but the Hub shows it
    "chat_template.jinja": "fails",
    "config.json": "fails",
    "config_sentence_transformers.json": "changes",  # the instructions are gone
    "generation_config.json": "same",
    "model.safetensors": "fails",
    "modules.json": "fails",
    "processor_config.json": "fails",
    "tokenizer.json": "fails",
    "tokenizer_config.json": "fails",
}


@pytest.fixture(scope="module")
def whole(tiny_checkpoint):
    return use(tiny_checkpoint)


def use(folder):
    """Vectors `(2, 2, D)` of a checkpoint, direct and reasoned, and its instructions."""
    # without its config.json it would be built at full size
    AutoConfig.from_pretrained(folder)
    model = MMEmbR1(str(folder), device="cpu")
    return np.stack(
        [model.encode(TEXTS, reasoning=mode, max_reasoning_tokens=2) for mode in ("never", "always")]
    ), model.prompts


def effect(folder, whole):
    try:
        vectors, prompts = use(folder)
    except (OSError, ValueError):
        return "fails"
    return "same" if np.array_equal(vectors, whole[0]) and prompts == whole[1] else "changes"


def test_every_file_is_judged(tiny_checkpoint):
    assert {file.name for file in tiny_checkpoint.iterdir() if file.suffix != ".py"} == set(WITHOUT)


@pytest.mark.parametrize("name", WITHOUT)
def test_what_is_needed_has_to_be_there(checkpoint, whole, name):
    """Refused is just what does not load, does not embed, or embeds otherwise without it; and what lacks its card."""
    (checkpoint / name).unlink()
    assert effect(checkpoint, whole) == WITHOUT[name]
    if WITHOUT[name] == "same" and name != "README.md":
        assert name not in check_checkpoint(checkpoint)
        return
    problem = "there are no weights" if name == "model.safetensors" else rf"({name}|{name} or [\w.]+) is missing"
    with pytest.raises(ValueError, match=rf"checkpoint can't be pushed:\n- {problem}"):
        check_checkpoint(checkpoint)


def write(path, content):
    path.write_text(json.dumps(content))


def test_templates_that_the_processor_finds(checkpoint, whole):
    template = (checkpoint / "chat_template.jinja").read_text()
    (checkpoint / "chat_template.jinja").unlink()
    for name, is_found in (("tokenizer_config.json", False), ("processor_config.json", True)):
        config = json.loads((checkpoint / name).read_text())
        write(checkpoint / name, config | {"chat_template": template})
        assert effect(checkpoint, whole) == ("same" if is_found else "fails")
        if is_found:
            assert check_checkpoint(checkpoint)
        else:
            with pytest.raises(ValueError, match="- chat_template.jinja is missing"):
                check_checkpoint(checkpoint)
        write(checkpoint / name, config)


def test_a_processor_in_older_files(checkpoint, whole):
    config = json.loads((checkpoint / "processor_config.json").read_text())
    (checkpoint / "processor_config.json").unlink()
    write(checkpoint / "preprocessor_config.json", config["image_processor"])
    write(checkpoint / "video_preprocessor_config.json", config["video_processor"])
    assert effect(checkpoint, whole) == "same"
    assert "preprocessor_config.json" in check_checkpoint(checkpoint)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="none is no folder; name the folder that save_pretrained wrote"):
        check_checkpoint(tmp_path / "none")


def test_all_problems_are_told_at_once(checkpoint):
    (checkpoint / "optimizer.pt").touch()
    (checkpoint / ".env").touch()
    message = r"can't be pushed:\n- .env is not a file of .*\n- optimizer.pt is not a file of a checkpoint; allowed"
    with pytest.raises(ValueError, match=message):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "pytorch_model.bin",
            "optimizer.pt",
            "rng_state.pth",
            "model.CKPT",
            "state.pkl",
            "1_Dense/m.bin",
            "a.json.pkl",
        ),
        *(
            "notes.dat",
            "a.zip",
            "array.npy",
            "array.npz",
            "weights.h5",
            "model.gguf",
            "train.py",
            "LICENSE.p",
            "run.sh",
        ),
    ],
)
def test_files_that_are_not_of_a_checkpoint(checkpoint, name):
    """Pickles and whatever may hide one are refused, because they are not on the list."""
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_bytes(b"anything")
    allowed = r"allowed are \*.json, .*\*.safetensors.*\. Move it elsewhere$"
    with pytest.raises(ValueError, match=rf"can't be pushed:\n- {name} is not a file of a checkpoint; {allowed}"):
        check_checkpoint(checkpoint)


def test_files_that_may_lie_beside_the_model(checkpoint):
    names = ["LICENSE", "NOTICE", "CITATION.cff", "curve-test.csv", "curve-test.png", "assets/Photo.JPG"]
    names += ["results.json", "tokenizer.model", "merges.txt", "assets/notes.md"]
    (checkpoint / "assets").mkdir()
    for name in names:
        (checkpoint / name).write_bytes(b"{}")
    assert set(names) < set(check_checkpoint(checkpoint))


def test_safetensors_that_begin_like_a_pickle(checkpoint):
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (checkpoint / "more.safetensors").write_bytes(struct.pack("<Q", 0x280) + header.ljust(0x280) + b"a")
    assert (checkpoint / "more.safetensors").read_bytes().startswith(b"\x80\2")
    assert "more.safetensors" in check_checkpoint(checkpoint)


@pytest.mark.parametrize("name", [".env", ".env.local", "id_rsa", "deploy.pem", "token", ".netrc", "stored_tokens"])
def test_secrets_have_names_that_are_not_allowed(checkpoint, name):
    (checkpoint / name).touch()
    with pytest.raises(ValueError, match=f"- {re.escape(name)} is not a file of a checkpoint"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("name", [".env.json", "id_rsa.txt", "credentials.json", "my_secrets.txt"])
def test_secrets_by_name(checkpoint, name):
    (checkpoint / name).touch()
    with pytest.raises(ValueError, match=f"- {re.escape(name)} looks like a secret"):
        check_checkpoint(checkpoint)


def test_a_token_in_a_file(checkpoint):
    (checkpoint / "notes.md").write_text("HF_TOKEN=hf_" + 34 * "a")
    with pytest.raises(ValueError, match="- notes.md holds a token of the Hub; remove it, and revoke the token"):
        check_checkpoint(checkpoint)


def test_weights(checkpoint, tiny_checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match="- model.safetensors can't be read"):
        check_checkpoint(checkpoint)
    weights.unlink()
    shutil.copy(tiny_checkpoint / "model.safetensors", checkpoint / "other.safetensors")
    with pytest.raises(ValueError, match="- there are no weights: model.safetensors, or model.safetensors.index.json"):
        check_checkpoint(checkpoint)


def test_adapters_alone(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"- adapter_model.safetensors belongs to adapters.*\n- there are no weights"):
        check_checkpoint(checkpoint)
    (checkpoint / "adapter_model.safetensors").rename(checkpoint / "model.safetensors")
    write(checkpoint / "adapter_config.json", {"base_model_name_or_path": "elsewhere"})
    with pytest.raises(ValueError, match="- adapter_config.json belongs to adapters, and loaders would look"):
        check_checkpoint(checkpoint)


def test_shards_are_all_there(checkpoint, whole):
    model = MMEmbR1(str(checkpoint), device="cpu")
    (checkpoint / "model.safetensors").unlink()
    model[0].model.save_pretrained(str(checkpoint), max_shard_size="100KB")
    shards = sorted(file.name for file in checkpoint.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert set(shards) < set(check_checkpoint(checkpoint))
    assert effect(checkpoint, whole) == "same"
    for shard in shards:
        (checkpoint / shard).rename(checkpoint / "away.txt")
        with pytest.raises(ValueError, match=f"index.json names {shard}, which is not there"):
            check_checkpoint(checkpoint)
        (checkpoint / "away.txt").rename(checkpoint / shard)
    index = checkpoint / "model.safetensors.index.json"
    names = json.loads(index.read_text())
    tensor = min(name for name, shard in names["weight_map"].items() if shard != shards[0])
    names["weight_map"][tensor] = shards[0]
    write(index, names)
    with pytest.raises(ValueError, match=f"says that {shards[0]} holds {tensor}, which it does not; save the model"):
        check_checkpoint(checkpoint)
    index.unlink()
    with pytest.raises(ValueError, match="- there are no weights"):
        check_checkpoint(checkpoint)
    write(index, {"weight_map": []})
    with pytest.raises(ValueError, match="index.json names no weights; save the model again"):
        check_checkpoint(checkpoint)


class TestCode:
    def test_of_every_file_that_is_named_or_imported(self, checkpoint):
        """Each code file of a checkpoint is needed: by a config, by modules.json, or by another."""
        for file in checkpoint.glob("*.py"):
            code = file.read_bytes()
            file.unlink()
            with pytest.raises(ValueError, match=rf"- (\w+\.(py|json)) names {file.name}, which is not there"):
                check_checkpoint(checkpoint)
            file.write_bytes(code)
        assert check_checkpoint(checkpoint)

    def test_of_another_repository(self, checkpoint):
        config = json.loads((checkpoint / "config.json").read_text())
        config["auto_map"]["AutoModel"] = "other/repo--modeling_mmemb_r1.MMEmbR1Model"
        (checkpoint / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="config.json takes code from another repository"):
            check_checkpoint(checkpoint)

    def test_of_an_installed_package(self, checkpoint):
        modules = json.loads((checkpoint / "modules.json").read_text())
        modules[0]["type"] = "mmemb_r1.modeling.sentence_mmemb_r1.MMEmbR1Module"
        modules.append({"idx": 1, "name": "1", "path": "", "type": "sentence_transformers.models.Normalize"})
        (checkpoint / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(ValueError, match="MMEmbR1Module, which loads only where that package is") as error:
            check_checkpoint(checkpoint)
        assert "Normalize" not in str(error.value)
        write(checkpoint / "modules.json", modules[1:])
        with pytest.raises(
            ValueError, match="modules.json names no module of this model; save the model with MMEmbR1"
        ):
            check_checkpoint(checkpoint)

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ("from . import sibling", "sentence_mmemb_r1.py:1 is an import that no loader of remote code follows"),
            ("from ..above import name", "sentence_mmemb_r1.py:1 is an import"),
            ("from .missing import name", "sentence_mmemb_r1.py names missing.py, which is not there"),
            ("def f(:", "sentence_mmemb_r1.py is no Python"),
        ],
    )
    def test_that_does_not_load(self, checkpoint, code, message):
        (checkpoint / "sentence_mmemb_r1.py").write_text(code)
        with pytest.raises(ValueError, match=message):
            check_checkpoint(checkpoint)

    def test_that_is_not_named(self, checkpoint):
        config = json.loads((checkpoint / "config.json").read_text())
        del config["auto_map"]["AutoModel"]
        write(checkpoint / "config.json", config)
        with pytest.raises(ValueError, match="config.json names no code for AutoModel; save the model again"):
            check_checkpoint(checkpoint)

    @pytest.mark.parametrize(
        ("auto_map", "message"),
        [
            (0.5, "the auto_map of config.json is 0.5, no object"),
            ({"AutoModel": 3, "AutoConfig": [["a.B"]]}, "the auto_map of config.json names 3 for code"),
        ],
    )
    def test_that_is_named_by_something_else(self, checkpoint, auto_map, message):
        config = json.loads((checkpoint / "config.json").read_text())
        write(checkpoint / "config.json", {**config, "auto_map": auto_map})
        with pytest.raises(ValueError, match=message):
            check_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "name", [name for name in WITHOUT if name.endswith(".json") and name != "generation_config.json"]
)
def test_json_that_is_none(checkpoint, name):
    (checkpoint / name).write_text("{")
    with pytest.raises(ValueError, match=rf"can't be pushed:\n- {name} is no JSON[^\n]*$"):
        check_checkpoint(checkpoint)
    for content in ("{}", "[]", "null"):
        (checkpoint / name).write_text(content)
        with pytest.raises(ValueError, match=rf"can't be pushed:\n- {name} holds nothing that can be loaded[^\n]*$"):
            check_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("# A model", "README.md has no metadata"),
        ("---\ntags: [a\n---\n", "the metadata of README.md can't be read"),
        ("---\n- a\n---\n", "the metadata of README.md can't be read"),
    ],
)
def test_cards(checkpoint, card, message):
    (checkpoint / "README.md").write_text(card)
    with pytest.raises(ValueError, match=message):
        check_checkpoint(checkpoint)


def test_links(checkpoint, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (checkpoint / "assets").symlink_to(tmp_path / "elsewhere")
    (checkpoint / "gone.txt").symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match="- assets is a link to a folder.*\n- gone.txt is no file, or a link"):
        check_checkpoint(checkpoint)


def test_linked_files_are_what_they_lead_to(checkpoint, tmp_path):
    """So a folder of the Hub's cache can be pushed."""
    (checkpoint / "config.json").rename(tmp_path / "blob")
    (checkpoint / "config.json").symlink_to(tmp_path / "blob")
    assert "config.json" in check_checkpoint(checkpoint)
