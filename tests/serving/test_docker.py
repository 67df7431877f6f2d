"""The images install the wheel, run as nobody in particular, and serve as the command understands it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmemb_r1.cli import _parser

FILES = ("Dockerfile", "Dockerfile.cuda")


def instructions(root, name):
    text = (root / "docker" / name).read_text(encoding="utf-8")
    lines = [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in lines]


@pytest.mark.parametrize("name", FILES)
def test_hadolint_finds_nothing(root, name):
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, root / "docker" / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", FILES)
def test_an_image(root, name):
    found = instructions(root, name)
    last = {key: value for key, value in found}
    assert int(last["USER"]) > 0
    words = [*json.loads(last["ENTRYPOINT"])[1:], *json.loads(last["CMD"])]
    args = _parser(["serve"]).parse_args(words)
    assert args.host == "0.0.0.0" and args.model == "/models/mmemb-r1"
    assert f"127.0.0.1:{args.port}/health" in last["HEALTHCHECK"] and last["EXPOSE"] == str(args.port)
    sources = [value.split()[-2] for key, value in found if key == "COPY"]
    assert sources == ["dist/mmemb_r1-*.whl", "/srv/mmemb-r1"]
    ignored = (root / "docker" / f"{name}.dockerignore").read_text(encoding="utf-8").split("\n")
    assert "*" in ignored and "!dist/*.whl" in ignored
    pins = (root / "constraints.txt").read_text(encoding="utf-8").split()
    assert {pin for key, value in found if key == "RUN" for pin in re.findall(r"\S+==\S+", value)} <= set(pins)


def test_compose(root):
    services = yaml.safe_load((root / "docker" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert services.keys() == {"cpu", "cuda"}
    for service, name in zip(services.values(), FILES, strict=True):
        assert service["build"] == {"context": "..", "dockerfile": f"docker/{name}"}
        assert service["ports"] == ["127.0.0.1:8000:8000"] and service["read_only"]
        assert service["volumes"] == ["${MODEL:-../model}:/models/mmemb-r1:ro"]
        assert _parser(["serve"]).parse_args(["serve", *service["command"]]).model == "/models/mmemb-r1"
        assert "MMEMB_R1_API_KEY:?" in service["environment"]["MMEMB_R1_API_KEY"]
    assert services["cuda"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
