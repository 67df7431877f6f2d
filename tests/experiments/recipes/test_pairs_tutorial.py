"""The tutorial on training on pairs of one's own: its commands run in their order, on tiny models."""

from __future__ import annotations

import json
import re

import pytest

from experiments.recipes.public_model import blocks, num_rows, run_block, small_programs
from mmemb_r1.tiny import build_tiny_vlm

MODELS = ("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-4B-Instruct")


@pytest.mark.slow
def test_the_tutorial_from_the_pairs_to_a_search(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(MODELS):
        vlm, processor = build_tiny_vlm("qwen3_vl", seed=seed)
        vlm.save_pretrained(name)
        processor.save_pretrained(name)
    page = (root / "docs" / "train-your-pairs.md").read_text(encoding="utf-8")
    (python,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(compile(python, "train-your-pairs.md", "exec"), {})
    environment = small_programs(tmp_path)
    short = page.replace("max_tokens: 256", "max_tokens: 64")  # of a random model few come to their end anyway
    assert short != page
    shown = blocks(short.replace(f"```python\n{python}```", ""))
    said = [run_block(block, tmp_path, environment) for block in shown]

    files = ("measure/held-out.parquet", "teach/held-out.parquet", "teach/train.parquet")
    parts = [num_rows(tmp_path / file) for file in files]
    assert sum(parts) == 80 and min(parts) >= 10
    assert num_rows(tmp_path / "selection" / "candidates.parquet") == parts[2] * 2 * 4
    assert num_rows(tmp_path / "selection" / "selected.parquet") > 10
    assert json.loads((tmp_path / "gate" / "gate.json").read_text(encoding="utf-8"))["fitted"] > 0
    for name, modes in (("before", ["never"]), ("after", ["always", "auto", "never"])):
        results = json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8"))
        assert sorted(results["tasks"]["price"]["modes"]) == modes
    assert len(said) == len(shown) > 7 and "shop-index" in said[-1]
