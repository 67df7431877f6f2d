"""The examples that documents point to are what the commands take."""

from __future__ import annotations

import pytest
import yaml

from mmemb_r1.atlas import build_atlas
from mmemb_r1.training.posterior.evaluator_config import EvaluatorConfig
from mmemb_r1.training.prior.pool import load_pool


def test_pool(root, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    workers = load_pool(root / "examples" / "pool.yaml")
    assert [(worker.name, worker.num_samples) for worker in workers] == [
        ("instruct", 4),
        ("thinking", 4),
        ("strong", 1),
    ]


def test_atlas_pool(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build_atlas("runs/quickstart/atlas", num_countries=12, num_objects=10, generated_rows=1, size=16, second_font=None)
    workers = load_pool(root / "examples" / "atlas-pool.yaml")
    assert [worker.behaviour for worker in workers] == ["correct", "confused", "verbose", "format"]


@pytest.mark.parametrize("name", ["atlas-evaluator-reading", "atlas-evaluator"])
def test_evaluator_recipes(root, tmp_path, name):
    fields = yaml.safe_load((root / "examples" / f"{name}.yaml").read_text(encoding="utf-8"))
    config = EvaluatorConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **fields)
    assert config.learning_rate <= 2e-4 and config.prompt == "evaluator-short"
