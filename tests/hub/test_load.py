"""A checkpoint on the Hub loads by its id: with the package, and where the package is not installed."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from mmemb_r1 import MMEmbR1
from mmemb_r1.hub import check_checkpoint, pull_checkpoint, push_checkpoint

REPO = "org/tiny"
TEXTS = ["What is the capital of Peru?", "Lima"]


@pytest.fixture
def vectors(tiny_checkpoint):
    """Of the checkpoint on disk: mode -> vectors `(2, D)`."""
    model = MMEmbR1(str(tiny_checkpoint), device="cpu")
    return {mode: model.encode(TEXTS, reasoning=mode) for mode in ("never", "always")}


def test_by_id_with_the_package(hub, tiny_checkpoint, vectors, tmp_path):
    """What is loaded from there and saved is a whole checkpoint again, with the same code."""
    first = push_checkpoint(tiny_checkpoint, REPO, private=True)
    cache = str(tmp_path / "cache")
    model = MMEmbR1(REPO, cache_folder=cache, device="cpu")
    hub.change(REPO, **{"config.json": b"{}"})
    pinned = MMEmbR1(REPO, revision=first.commit, cache_folder=cache, device="cpu")
    for mode, expected in vectors.items():
        np.testing.assert_allclose(model.encode(TEXTS, reasoning=mode), expected, atol=1e-5, rtol=0)
        np.testing.assert_allclose(pinned.encode(TEXTS, reasoning=mode), expected, atol=1e-5, rtol=0)
    model.save_pretrained(str(tmp_path / "saved"))
    code = {file.name for file in tiny_checkpoint.glob("*.py")}
    assert code <= set(check_checkpoint(tmp_path / "saved"))
    assert not code & set(push_checkpoint(tmp_path / "saved", REPO).changed)


@pytest.mark.parametrize("token", [None, "hf_stranger"])
def test_a_private_repository_needs_a_token(hub, contents, tmp_path, monkeypatch, token):
    """Loading by id says so, as a pull does."""
    hub.create(REPO, private=True, **contents)
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    remedy = "no token was found: log in" if token is None else "the token that was sent may not read it"
    for name in (REPO, "org/none"):
        with pytest.raises(OSError, match=f"there is no repository {name}, or it is private and {remedy}"):
            MMEmbR1(name, cache_folder=str(tmp_path / "cache"), device="cpu")
    assert not (set(hub.downloads) & set(contents))


def test_a_token_that_the_hub_does_not_know(hub, contents, tmp_path, monkeypatch):
    hub.create(REPO, private=True, **contents)
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    with pytest.raises(OSError, match=f"{REPO}: the Hub does not know the token that was sent") as error:
        MMEmbR1(REPO, cache_folder=str(tmp_path / "cache"), device="cpu")
    assert "hf_unknown" not in str(error.value)


@pytest.mark.parametrize("trust", [True, False])
def test_with_the_package_automodel_takes_its_class(hub, contents, tmp_path, trust):
    """`MMEmbR1` was imported here, which registers it. The repository's code is not even downloaded."""
    from transformers import AutoModel

    repo = "org/registered"  # transformers remembers which commit a repository was at
    hub.create(repo, **contents)
    model = AutoModel.from_pretrained(repo, trust_remote_code=trust, cache_dir=str(tmp_path / "cache"))
    assert type(model).__module__ == "mmemb_r1.modeling.modeling_mmemb_r1"
    assert not [name for name in hub.downloads if name.endswith(".py")]


def test_remote_code_needs_trust(hub, tiny_checkpoint, tmp_path):
    from sentence_transformers import SentenceTransformer

    push_checkpoint(tiny_checkpoint, REPO)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(REPO, trust_remote_code=False, cache_folder=str(tmp_path / "cache"), device="cpu")
    assert not hub.downloads["sentence_mmemb_r1.py"], "the code is not even downloaded"


REMOTE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mmemb_r1":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
import numpy as np
import torch
from sentence_transformers import SentenceTransformer

repo, commit, checked, again, results = sys.argv[1:]
torch.set_num_threads(1)
texts = ["What is the capital of Peru?", "Lima"]
vectors = {}
for name, options in {
    "main": {},
    "pinned": {"revision": commit},
    "code": {"revision": commit, "model_kwargs": {"code_revision": checked}},
}.items():
    model = SentenceTransformer(repo, trust_remote_code=True, device="cpu", **options)
    module = sys.modules[type(model[0]).__module__]
    if module.__name__.split(".")[0] != "transformers_modules":
        sys.exit(f"{name}: the code of the repository was not used, but {module.__name__}")
    if getattr(module, "CHECKED", False) != (name == "code"):
        sys.exit(f"{name}: the code is that of another commit, {module.__name__}")
    for mode in ("never", "always"):
        vectors[f"{name} {mode}"] = model.encode(texts, reasoning=mode)
model.save_pretrained(again)
np.savez(results, **vectors)
"""


@pytest.mark.slow
def test_by_id_without_the_package(hub, tiny_checkpoint, vectors, contents, tmp_path):
    """In a process of its own: the code is the repository's, of the commit that was asked for, and is saved again."""
    commit = push_checkpoint(tiny_checkpoint, REPO, private=True).commit
    code = contents["sentence_mmemb_r1.py"] + b"\nCHECKED = True\n"
    checked = hub.change(REPO, **{"sentence_mmemb_r1.py": code})
    hub.change(REPO, **{"sentence_mmemb_r1.py": contents["sentence_mmemb_r1.py"]})
    again, results = tmp_path / "again", tmp_path / "vectors.npz"
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_writer",
    }
    command = [sys.executable, "-c", REMOTE, REPO, commit, checked, str(again), str(results)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = np.load(results)
    assert len(found.files) == 6
    for name in found.files:
        np.testing.assert_allclose(found[name], vectors[name.split()[1]], atol=1e-5, rtol=0, err_msg=name)

    assert set(check_checkpoint(again)) == set(contents)
    assert (again / "sentence_mmemb_r1.py").read_bytes() == code
    push_checkpoint(again, "org/again")
    pulled = pull_checkpoint("org/again", output=tmp_path / "pulled")
    model = MMEmbR1(str(pulled.folder), device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS, reasoning="never"), vectors["never"], atol=1e-5, rtol=0)
