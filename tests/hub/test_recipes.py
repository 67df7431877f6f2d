"""An embedder on the Hub is recognised by its id and files, and its adapters find their base model there."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.recipes.conftest import build
from tests.recipes.written import direct_vector, loaded

from mmemb_r1.cli import main
from mmemb_r1.recipes import convert, find_recipe
from mmemb_r1.tiny import build_tiny_vlm


@pytest.mark.slow
def test_adapters_by_id(hub, tmp_path, monkeypatch):
    folder = build("vlm2vec-v2", tmp_path, None)
    base, adapters = "Qwen/Qwen2-VL-2B-Instruct", "VLM2Vec/VLM2Vec-V2.0"
    vlm, processor = loaded("vlm2vec-v2", folder)
    said = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(
        json.dumps({**said, "base_model_name_or_path": base}), encoding="utf-8"
    )
    for repo, source in {base: tmp_path / "Qwen2-VL-2B-Instruct", adapters: folder}.items():
        hub.create(repo, **{file.name: file.read_bytes() for file in source.iterdir()})
    recipe = find_recipe(adapters)
    assert recipe.name == "vlm2vec-v2"
    converted = convert(adapters, recipe)
    assert converted.proof.holds and converted.commit is None  # that of the base model would not say which adapters
    wanted = direct_vector("vlm2vec-v2", vlm, processor, {"text": "Lima"}).numpy()
    np.testing.assert_allclose(converted.model.encode("Lima", reasoning="never"), wanted, atol=1e-5, rtol=0)


def test_records_name_the_commit_of_the_hub(hub, tmp_path):
    """transformers does not keep it in a config any more; the cache knows which one was read."""
    vlm, processor = build_tiny_vlm("qwen3_vl")
    vlm.save_pretrained(tmp_path / "vlm")
    processor.save_pretrained(tmp_path / "vlm")
    files = {file.name: file.read_bytes() for file in (tmp_path / "vlm").iterdir()}
    hub.create("org/vlm", **files)
    assert main(["init", "--vlm", "org/vlm", "--output", str(tmp_path / "model")]) == 0
    record = json.loads((tmp_path / "model/training.json").read_text(encoding="utf-8"))
    assert hub.head("org/vlm") in json.dumps(record)
    embedder = build("qwen3-vl-embedding", tmp_path, None)
    hub.create("Qwen/Qwen3-VL-Embedding-2B", **{file.name: file.read_bytes() for file in embedder.iterdir()})
    converted = convert("Qwen/Qwen3-VL-Embedding-2B")
    assert converted.commit == hub.head("Qwen/Qwen3-VL-Embedding-2B")
