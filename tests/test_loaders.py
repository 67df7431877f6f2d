"""One repository, many ways to load it, with this package and without: the same vectors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmemb_r1 import MMEmbR1
from mmemb_r1.atlas.pictures import flag_hexcode, render_svg

MODES = ("never", "auto", "always")
PICTURES = {"peru": flag_hexcode("PE"), "chad": flag_hexcode("TD"), "dog": "1F436", "train": "1F682"}  # of OpenMoji
INPUTS: list[dict[str, Any]] = [
    {"text": "What is the capital of Peru?"},
    {"text": "Lima"},
    {"text": "The currency of Chad is the Central African CFA franc."},
    {"image": ["peru"]},
    {"image": ["dog"]},
    {"image": ["peru"], "text": "What is the capital of this country?"},
    {"image": ["train"], "text": "What is this?"},
    {"image": ["chad"], "text": "Which currency is used in this country?"},
    {"image": ["peru", "chad"], "text": "Which of the two countries is larger?"},
    {"image": ["dog", "train", "chad"]},
]

LOADERS = '''
import json

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor, pipeline


def vectors_of(repository, again, threshold, folder):
    """Loader and mode -> vectors (10, D) of the inputs in `folder`, and the classes that were loaded."""
    torch.set_num_threads(1)
    inputs = json.loads((folder / "inputs.json").read_text())
    for value in inputs:
        value["image"] = [Image.open(folder / f"{name}.png") for name in value.get("image", [])]
    contents = [
        [{"type": "image", "image": picture.convert("RGB")} for picture in value["image"]]
        + [{"type": "text", "text": value["text"]} for _ in range("text" in value)]
        for value in inputs
    ]
    sentence = SentenceTransformer(repository, trust_remote_code=True, device="cpu")
    sentence.save_pretrained(again)
    saved_again = SentenceTransformer(again, trust_remote_code=True, device="cpu")
    auto = AutoModel.from_pretrained(repository, trust_remote_code=True)
    extractor = pipeline("feature-extraction", repository, trust_remote_code=True, device="cpu")
    processor = AutoProcessor.from_pretrained(repository, trust_remote_code=False)
    batch = processor.apply_chat_template(
        [[{"role": "user", "content": content}] for content in contents],
        tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
        processor_kwargs={"padding": True},
    )
    vectors = {}
    for mode in ("never", "auto", "always"):
        options = {"reasoning": mode, "gate_threshold": threshold}
        vectors[f"SentenceTransformer {mode}"] = sentence.encode(inputs, **options)
        vectors[f"saved_again {mode}"] = saved_again.encode(inputs, **options)
        vectors[f"pipeline {mode}"] = np.array([extractor(value, **options) for value in inputs])
        with torch.no_grad():
            vectors[f"AutoModel {mode}"] = auto.embed(**batch, **options).embeddings.numpy()
    return vectors, [type(part) for part in (sentence[0], auto, extractor)]
'''

REMOTE = (
    """
import sys
from pathlib import Path

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mmemb_r1":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
try:
    import mmemb_r1
except ModuleNotFoundError:
    pass
else:
    sys.exit("mmemb_r1 can be imported")
"""
    + LOADERS
    + """
repository, again, threshold, folder = sys.argv[1:]
vectors, classes = vectors_of(repository, again, float(threshold), Path(folder))
if {loaded.__module__.split(".")[0] for loaded in classes} != {"transformers_modules"}:
    sys.exit(f"the code of the repository was not used: {classes}")
np.savez(Path(folder) / "vectors.npz", **vectors)
"""
)


@pytest.fixture(scope="module")
def repository(thinking: Callable[..., MMEmbR1], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loaders") / "repository"
    thinking().save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ten inputs, for any process."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "inputs.json").write_text(json.dumps(INPUTS), encoding="utf-8")
    for name, hexcode in PICTURES.items():
        render_svg(hexcode, 64).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def expected(repository: Path, folder: Path) -> dict[str, Any]:
    """What `MMEmbR1` gives, with a threshold at which half of the inputs think."""
    model = MMEmbR1(str(repository), device="cpu")
    pictures = {name: str(folder / f"{name}.png") for name in PICTURES}
    inputs = [{**value, "image": [pictures[name] for name in value.get("image", [])]} for value in INPUTS]
    threshold = float(np.median([item["gate_prob"] for item in model.explain(inputs, reasoning="never")]))
    vectors = {mode: model.encode(inputs, reasoning=mode, gate_threshold=threshold) for mode in MODES}
    thinks = [item["reasoned"] for item in model.explain(inputs, gate_threshold=threshold)]
    assert sum(thinks) == 5
    assert np.abs(vectors["never"] - vectors["always"]).max(axis=1).min() > 1e-2
    return {"threshold": threshold, "vectors": vectors}


def assert_all_agree(vectors: Any, expected: dict[str, Any]) -> None:
    assert len(vectors) == 4 * len(MODES)
    for name in vectors:
        reference = expected["vectors"][name.split()[-1]]
        np.testing.assert_allclose(vectors[name], reference, atol=1e-5, rtol=0, err_msg=name)


def test_loaders_agree_with_the_package(repository, folder, expected, tmp_path):
    scope: dict[str, Any] = {}
    exec(compile(LOADERS, "loaders", "exec"), scope)
    vectors, classes = scope["vectors_of"](str(repository), str(tmp_path / "again"), expected["threshold"], folder)
    assert_all_agree(vectors, expected)
    # modules and pipelines are taken from the repository wherever trust is given, a registered model from the package
    homes = [loaded.__module__.split(".")[0] for loaded in classes]
    assert homes == ["transformers_modules", "mmemb_r1", "transformers_modules"]


def test_loaders_agree_without_the_package(repository, folder, expected, tmp_path):
    """In a process where it can't be imported: the repository's code is run, and what it saves loads again."""
    again = tmp_path / "again"
    arguments = [str(repository), str(again), repr(expected["threshold"]), str(folder)]
    command = [sys.executable, "-I", "-c", REMOTE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert_all_agree(np.load(folder / "vectors.npz"), expected)
    assert {file.name for file in repository.glob("*.py")} <= {file.name for file in again.iterdir()}
    loaded = MMEmbR1(str(again), device="cpu")
    texts = [value["text"] for value in INPUTS[:3]]
    np.testing.assert_allclose(loaded.encode(texts, reasoning="never"), expected["vectors"]["never"][:3], atol=1e-5)
