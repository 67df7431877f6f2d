"""The examples of docs/scale.md run, and print what they say."""

from __future__ import annotations

import json
import re
import shutil

import pytest

FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
pytestmark = pytest.mark.usefixtures("cluster", "one_thread")


def test_examples_run_and_print_what_they_say(root, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    shutil.copytree(tiny_checkpoint, tmp_path / "org/mmemb-r1")
    lines = [json.dumps(f"document {number}") for number in range(10)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    blocks = FENCE.findall((root / "docs/scale.md").read_text(encoding="utf-8"))
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/scale.md", "exec"), {})
        assert capsys.readouterr().out.splitlines() == re.findall(r"^# => (.*)$", block, re.MULTILINE)
