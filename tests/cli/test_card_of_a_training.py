"""The whole method on tables of one's own, by the commands that a user types: what the card tells in the end."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import yaml
from datasets import Dataset

from mmemb_r1.cli import main
from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training.rationales.table import rationale_shard_path, write_rationale_shard

COLORS = ("red", "green", "blue", "white", "black", "pink")
SMALL = {"per_device_train_batch_size": 4, "disable_tqdm": True, "max_steps": 1}
RECIPES = {
    "joint": {**SMALL, "sub_batch_size": 2},
    "adaptive": {**SMALL, "per_device_train_batch_size": 8, "num_generations": 4, "max_reasoning_tokens": 3},
    "gate": {"holdout": 0.5},
}


def write_pairs(path, prefix):
    rows = [
        {
            "pair_id": f"{prefix} {place}",
            "task": ("my-colors", "my-paints")[place % 2],
            "query": {"text": f"{prefix} number {place}?"},
            "target": {"text": f"{color} {prefix}"},
        }
        for place, color in enumerate(COLORS)
    ]
    Dataset.from_list(rows).to_parquet(str(path))
    return path


def write_rationales(folder):
    for worker in ("kind", "wise"):
        same = {"side": "query", "worker": worker, "sample": 0, "seed": 0, "num_tokens": 3, "finish_reason": "stop"}
        rows = [
            {**same, "pair_id": f"first {place}", "text": f"Think of {color}, {worker} one."}
            for place, color in enumerate(COLORS[:4])
        ]
        write_rationale_shard(rationale_shard_path(folder, worker, 0), rows)
    return folder


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_own_tables_are_told_as_what_they_are(tmp_path, capsys):
    def run(*arguments):
        assert main([str(part) for part in arguments]) == 0, capsys.readouterr().err

    for part in build_tiny_vlm("qwen3_vl"):
        part.save_pretrained(tmp_path / "vlm")
    for phase, recipe in RECIPES.items():
        (tmp_path / f"{phase}.yaml").write_text(yaml.safe_dump(recipe))
    first, second, last = (write_pairs(tmp_path / f"{name}.parquet", name) for name in ("first", "second", "last"))
    start, selected = tmp_path / "start", tmp_path / "selection" / "selected.parquet"
    run("init", "--vlm", tmp_path / "vlm", "--output", start, "--set", "max_reasoning_tokens=4")
    run("select", "--pairs", first, "--rationales", write_rationales(tmp_path / "rationales"), "--evaluator", start,
        "--selection", "none", "--negatives", "1", "--device", "cpu", "--output", selected.parent)  # fmt: skip

    def train(phase, model, pairs, *options):
        config = ("--config", tmp_path / f"{phase}.yaml", "--output", tmp_path / phase)
        run("train", phase, "--model", model, "--pairs", pairs, *config, *options)
        return tmp_path / phase / "model"

    joint = train("joint", start, first, "--rationales", selected, "--cpu")
    assert 'never trained: what `"auto"` decides means nothing' in (joint / "README.md").read_text()
    gate = train("gate", joint, second, "--device", "cpu")
    model = train("adaptive", gate, second, "--joint-pairs", first, "--tasks", "my-colors", "--cpu")
    run("evaluate", "--model", model, "--pairs", last, "--device", "cpu", "--output", tmp_path / "run")
    run("card", model, "--results", tmp_path / "run" / "results.json")
    run("card", model, "--check")

    text = (model / "README.md").read_text(encoding="utf-8")
    assert "Atlas" not in text
    assert "last.parquet, 6 queries of 2 tasks" in text and "| my-paints |" in text
    record = json.loads((model / "training.json").read_text())
    assert [phase["phase"] for phase in record["before"]] == ["init", "joint", "gate"]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second, selected)}
    parts = re.split(r"^##+ ", text, flags=re.MULTILINE)
    (joint_part,) = [part for part in parts if part.startswith("Before it: joint")]
    for row in (
        "| pairs | 6 |",
        "| tasks | my-colors 3, my-paints 3 |",
        f"| pairs table | first.parquet, SHA-256 {digests['first.parquet']} |",
        f"| rationales table | selected.parquet, SHA-256 {digests['selected.parquet']} |",
        "| rationales | 8 selected ones, for 4 of the 6 pairs; by worker: kind 4, wise 4 |",
        "| selection | 8 of 8 rationales kept; none, seed 0; evaluator: embedding, start, weights ",
        "| gate | not trained |",
    ):
        assert row in joint_part, row
    (data,) = [part for part in parts if part.startswith("Training data and selection")]
    assert "| pairs | 3 |" in data and "| rows of the pairs table | tasks my-colors |" in data
    assert f"| joint pairs table | first.parquet, SHA-256 {digests['first.parquet']} |" in data
    assert f"| pairs table | second.parquet, SHA-256 {digests['second.parquet']} |" in data
    assert "- Not stated: licence, languages, base model." in text  # it was a folder, which is nobody's business
    assert str(tmp_path) not in text

    changed = text.replace("last.parquet, 6 queries", "Atlas, 6 queries")
    (model / "README.md").write_text(changed, encoding="utf-8")
    assert main(["card", str(model), "--check"]) == 2
    assert 'the files in the folder do not say "Atlas, 6 queries' in capsys.readouterr().err
