"""A folder is pushed only if it is a whole checkpoint and nothing else."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile

import numpy as np
import pytest

from mmemb_r1.hub import check_checkpoint


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


@pytest.mark.parametrize("name", ["config.json", "modules.json", "README.md"])
def test_files_that_have_to_be_there(checkpoint, name):
    (checkpoint / name).unlink()
    with pytest.raises(ValueError, match=rf"checkpoint can't be pushed:\n- {name} is missing"):
        check_checkpoint(checkpoint)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="none is no folder; name the folder that save_pretrained wrote"):
        check_checkpoint(tmp_path / "none")


def test_all_problems_are_told_at_once(checkpoint):
    (checkpoint / "optimizer.pt").touch()
    (checkpoint / ".env").touch()
    with pytest.raises(ValueError, match=r"can't be pushed:\n- .env looks like .*\n- optimizer.pt is a pickle"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "optimizer.pt", "rng_state.pth", "model.CKPT", "state.pkl", "1_Dense/model.bin"]
)
def test_pickles_by_name(checkpoint, name):
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_bytes(b"anything")
    with pytest.raises(ValueError, match=f"- {name} is a pickle, which runs code when it is loaded"):
        check_checkpoint(checkpoint)


def archive(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "/").replace("_", "."), data)
    return buffer.getvalue()


def array(values):
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        *(pickle.dumps([1], protocol=protocol) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)),
        archive(archive__data_pkl=b"anything"),
        array(np.array([{}, []], dtype=object)),
        array(np.zeros(1, dtype=[("number", "f4"), ("thing", "O")])),
        archive(array_npy=array(np.array([None]))),
    ],
)
def test_pickles_by_content(checkpoint, content):
    (checkpoint / "notes.dat").write_bytes(content)
    with pytest.raises(ValueError, match="- notes.dat is a pickle"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("content", [array(np.zeros(3)), archive(array_npy=array(np.zeros(3))), b"", b"\x80"])
def test_data_that_is_no_pickle(checkpoint, content):
    (checkpoint / "notes.dat").write_bytes(content)
    assert "notes.dat" in check_checkpoint(checkpoint)


@pytest.mark.parametrize("name", [".env", ".env.local", "id_rsa", "deploy.pem", "token", "credentials.json"])
def test_secrets_by_name(checkpoint, name):
    (checkpoint / name).touch()
    with pytest.raises(ValueError, match=f"- {re.escape(name)} looks like a secret"):
        check_checkpoint(checkpoint)


def test_a_token_in_a_file(checkpoint):
    (checkpoint / "notes.md").write_text("HF_TOKEN=hf_" + 34 * "a")
    with pytest.raises(ValueError, match="- notes.md holds a token of the Hub; remove it, and revoke the token"):
        check_checkpoint(checkpoint)


def test_weights(checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match="- model.safetensors can't be read"):
        check_checkpoint(checkpoint)
    weights.unlink()
    with pytest.raises(ValueError, match="- there are no weights"):
        check_checkpoint(checkpoint)


def test_shards_are_all_there(checkpoint):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="index.json names model-00002-of-00002.safetensors, which is not there"):
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


@pytest.mark.parametrize("name", ["config.json", "modules.json"])
def test_json_that_is_none(checkpoint, name):
    (checkpoint / name).write_text("{")
    with pytest.raises(ValueError, match=f"- {name} is no JSON"):
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
