"""Every example of docs/integrations.md runs, and finds what it says; `make test-integrations` installs the hosts."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer

from mmemb_r1 import MMEmbR1
from mmemb_r1.export import export_direct

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
SECTIONS = {
    re.match(r"[^\n]*", section)[0]: re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
}
EXAMPLES = {name: blocks for name, blocks in SECTIONS.items() if blocks}
HOSTS = {  # section -> the package that it is about
    "LangChain": "langchain_core",
    "LlamaIndex": "llama_index",
    "Haystack": "haystack",
    "LanceDB": "lancedb",
    "Qdrant": "qdrant_client",
    "Chroma": "chromadb",
    "FAISS": "faiss",
}


@pytest.fixture(scope="module")
def folders(tiny_checkpoint, tmp_path_factory):
    root = tmp_path_factory.mktemp("integrations")
    shutil.copytree(tiny_checkpoint, root / "org/mmemb-r1")
    export_direct(MMEmbR1(str(tiny_checkpoint), device="cpu"), root / "direct")
    return root


@pytest.fixture
def desk(folders, tmp_path, monkeypatch):
    shutil.copytree(folders, tmp_path, dirs_exist_ok=True)
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "runs/quickstart/flag.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def host(name):
    """Import what a section is about; where all hosts have to be there, a missing one is no reason to skip."""
    if os.environ.get("MMEMB_R1_INTEGRATIONS") != "1":
        pytest.importorskip(name)


STARTING_PROCESSES = "datasets, joblib and PyTorch's loaders"


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != STARTING_PROCESSES])
def test_examples_run_and_print_what_they_say(name, desk, capsys):
    if name in HOSTS:
        host(HOSTS[name])
    for block in EXAMPLES[name]:
        if name == "A form that every program loads":
            shutil.rmtree(desk / "direct")  # which it writes
        exec(compile(block, name, "exec", dont_inherit=True), {"__name__": "example"})
        check_printed(block, capsys.readouterr().out)


def check_printed(block, out):
    printed, promised = out.splitlines(), re.findall(r"^# => (.*)$", block, re.MULTILINE)
    assert promised and printed[-len(promised) :] == promised


@pytest.mark.slow
def test_an_example_that_starts_processes_is_a_script(desk):
    (block,) = EXAMPLES[STARTING_PROCESSES]
    (desk / "example.py").write_text(block, encoding="utf-8")
    done = subprocess.run([sys.executable, "example.py"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    check_printed(block, done.stdout)


def test_every_host_has_an_example():
    assert {*HOSTS, STARTING_PROCESSES} <= set(EXAMPLES)


def test_hosts_that_pass_no_options_embed_as_the_config_says(desk):
    host("llama_index")
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    model = MMEmbR1("org/mmemb-r1", device="cpu")
    always, never = (model.encode("A red flag.", reasoning=mode) for mode in ("always", "never"))
    assert np.abs(always - never).max() > 1e-4
    for mode, wanted in (("never", never), ("always", always)):
        model[0].model.config.document_reasoning = mode
        model.save_pretrained(mode, create_model_card=False)
        embedding = HuggingFaceEmbedding(mode, trust_remote_code=True, device="cpu")
        np.testing.assert_allclose(embedding.get_query_embedding("A red flag."), wanted, atol=1e-5)
        np.testing.assert_allclose(embedding.get_text_embedding("A red flag."), wanted, atol=1e-5)


def test_a_copy_that_was_pickled_gives_the_same_vectors(desk):
    texts = ["Lima", "A red flag."]
    for model in (MMEmbR1("org/mmemb-r1", device="cpu"), SentenceTransformer("direct", device="cpu")):
        copy = pickle.loads(pickle.dumps(model))
        assert copy[0] is not model[0]
        np.testing.assert_array_equal(copy.encode_document(texts), model.encode_document(texts))
