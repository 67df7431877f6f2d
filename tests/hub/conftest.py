"""The Hub's client of this process, pointed at a stand-in on this machine."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import _http


def _load_server() -> ModuleType:
    """The file beside this one. Test files are no package, so it can't be imported by name."""
    name = "mmemb_r1_test_hub_server"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("server.py"))
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


server = _load_server()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty stand-in, a cache of its own, and the token of a user who owns `org`."""
    with server.serve() as stand_in:
        # the client read these from the environment when it was imported, long before
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.endpoint)
        template = stand_in.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", stand_in.endpoint)
        monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))  # between two tries
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        yield stand_in


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def contents(tiny_checkpoint: Path) -> dict[str, bytes]:
    """Path -> content, of the checkpoint."""
    return {file.name: file.read_bytes() for file in tiny_checkpoint.iterdir()}
