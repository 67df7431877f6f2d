"""Every example of docs/serve.md runs against a server, and prints what it says."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from tests.serving.conftest import listening

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli._options import model_name
from mmemb_r1.serving.running import make_server
from mmemb_r1.serving.settings import ServerSettings

FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^ {4}curl (.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def page(root):
    return (root / "docs" / "serve.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def address(tiny_checkpoint):
    name = model_name("org/mmemb-r1")
    with listening(make_server(MMEmbR1(str(tiny_checkpoint), device="cpu"), name, ServerSettings(), port=0)) as server:
        yield f"127.0.0.1:{server.port}"


def test_examples_run_and_print_what_they_say(page, address, tmp_path, monkeypatch, capsys):
    pytest.importorskip("openai")
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "runs/quickstart/flag.png")
    monkeypatch.chdir(tmp_path)
    names = {}  # later blocks go on from earlier ones
    blocks = FENCE.findall(page)
    assert len(blocks) >= 3
    for block in blocks:
        exec(compile(block.replace("127.0.0.1:8000", address), "docs/serve.md", "exec", dont_inherit=True), names)
        assert capsys.readouterr().out.splitlines() == re.findall(r"^# => (.*)$", block, re.MULTILINE)


def test_requests_on_the_command_line(page, address):
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    (shown,) = SHELL.findall(re.sub(r"\\\n\s*", " ", page))
    done = subprocess.run(
        ["curl", "-sf", *shlex.split(shown.replace("127.0.0.1:8000", address))], capture_output=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.startswith(b'{"object":"list"')


def test_langchain(page, address):
    pytest.importorskip("langchain_openai")
    lines = re.search(r"^    from langchain_openai.*\n    (OpenAIEmbeddings\(.*\))$", page, re.MULTILINE)
    names = {}
    exec("from langchain_openai import OpenAIEmbeddings", names)
    embeddings = eval(lines[1].replace("127.0.0.1:8000", address), names)
    assert np.shape(embeddings.embed_query("a")) == (32,)
