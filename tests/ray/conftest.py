"""Ray on this machine, reachable from it alone; without Ray only what needs none is tested."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

NEED_RAY = [
    "test_deploy.py",
    "test_deployment.py",
    "test_embedding.py",
    "test_kills.py",
    "test_page.py",
    "test_parts.py",
]
collect_ignore = [] if find_spec("ray") else NEED_RAY
TEXTS = [f"text {number}" for number in range(40)]


@pytest.fixture(scope="session")
def ray_home():
    """What Ray writes goes here; the path is short, because sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="mray-") as folder:
        os.environ |= {
            "RAY_TMPDIR": folder,
            "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else one is made in the home folder
            "RAY_worker_niceness": "0",  # else they wait for whatever else the machine does
        }
        yield Path(folder)


@pytest.fixture(scope="session")
def cluster(ray_home):
    """Ray for the session: room for two workers, and a core that reads."""
    import ray  # as users may have done before

    from mmemb_r1.ray import connected

    with connected(cpus=3) as same:
        assert same is ray
        yield ray


@pytest.fixture(scope="session")
def processes():
    """`processes(part of a name)`: those that this one, or another, started, and that go on; others come and go."""
    import psutil

    def named(part, starter=None):
        found = []
        for one in psutil.Process(starter).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                found += [one] if part in "".join(one.cmdline()) else []
        return found

    return named


@pytest.fixture
def corpus(tmp_path):
    """40 texts, one of them twice."""
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(text) + "\n" for text in [*TEXTS[:-1], TEXTS[0]]))
    return path
