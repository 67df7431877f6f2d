"""The evaluator of trainers measures what an evaluation measures."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from mmemb_r1 import MMEmbR1
from mmemb_r1.evaluation import RetrievalEvaluator, Settings, run_evaluation
from mmemb_r1.evaluation.pair_tasks import pair_tasks
from mmemb_r1.tiny import build_tiny_vlm

COLORS = ("red", "green", "blue", "white", "black", "gray")


@pytest.fixture(scope="module")
def pairs():
    rows = [("said", f"say {color}", color) for color in COLORS] + [
        ("told", f"{color}?", color) for color in COLORS[:3]
    ]
    inputs = [{"task": task, "query": {"text": query}, "target": {"text": target}} for task, query, target in rows]
    return Dataset.from_list(inputs)


@pytest.fixture(scope="module")
def model():
    """An untrained one whose gate is of two minds."""
    made = MMEmbR1.from_vlm(*build_tiny_vlm("qwen3_vl"), max_reasoning_tokens=3)
    with torch.no_grad():
        made[0].model.gate.output.weight.normal_(generator=torch.Generator().manual_seed(0))
        made[0].model.gate.output.bias.zero_()
        probabilities = sorted(
            row["gate_prob"] for row in made.explain([f"say {color}" for color in COLORS], task="query")
        )
        made[0].model.gate.output.bias.fill_(-torch.logit(torch.tensor(probabilities[3])).item())
    return made


def test_it_measures_what_an_evaluation_measures(model, pairs, caplog):
    evaluator = RetrievalEvaluator(pairs, batch_size=4)
    with caplog.at_level("INFO"):
        found = evaluator(model)
    assert not [record for record in caplog.records if record.name.startswith("mmemb_r1.evaluation")]
    with_ids = pairs.add_column("pair_id", [str(row) for row in range(len(pairs))])
    with caplog.at_level("INFO"):
        results = run_evaluation(model, pair_tasks(with_ids), Settings(), progress=False)
    assert "said, never: hit@1" in caplog.text  # a line a task is for an evaluation by itself
    expected = results["summary"]["all"]["modes"]
    for mode in ("never", "always", "auto"):
        for metric in ("hit@1", "hit@5", "hit@10", "mrr", "invocation_ratio", "mean_reasoning_tokens"):
            assert found[f"{mode}_{metric}"] == pytest.approx(expected[mode][metric], abs=1e-6), (mode, metric)
    assert len(found) == 18 and all(isinstance(value, float) for value in found.values())
    assert (
        found["never_invocation_ratio"] == 0 < found["auto_invocation_ratio"] < found["always_invocation_ratio"] == 1
    )
    assert evaluator.primary_metric == "auto_hit@1" and evaluator.greater_is_better


def test_its_numbers_carry_its_name_and_are_kept(model, pairs, tmp_path):
    evaluator = RetrievalEvaluator(pairs, ["never"], name="colors")
    assert evaluator.primary_metric == "colors_never_hit@1"
    for steps in (10, 20):
        found = evaluator(model, output_path=str(tmp_path), epoch=0.5, steps=steps)
    assert set(found) >= {"colors_never_hit@1", "colors_never_mrr"}
    assert evaluator.primary_metric == "colors_never_hit@1"
    lines = [json.loads(line) for line in (tmp_path / "retrieval.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == [{"epoch": 0.5, "steps": steps, **found} for steps in (10, 20)]
    assert evaluator.get_config_dict() == {"modes": ["never"], "queries": 9}


def test_a_model_that_cant_think_is_measured_directly_and_refused_otherwise(pairs):
    class Letters(torch.nn.Module):
        """Counts letters."""

        modalities = ["text"]

        def forward(self, features):
            return features

        def preprocess(self, inputs, **kwargs):
            counts = [[float(str(text).count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz?"] for text in inputs]
            return {"sentence_embedding": torch.tensor(counts)}

    plain = SentenceTransformer(modules=[Letters()], device="cpu")
    found = RetrievalEvaluator(pairs, ["never"])(plain)
    assert found["never_hit@1"] == pytest.approx((5 / 6 + 1) / 2, abs=0.2)
    with pytest.raises(ValueError, match="is no adaptive model, so it can't be asked to think"):
        RetrievalEvaluator(pairs)(plain)


def test_what_cant_be_measured_is_refused(pairs):
    with pytest.raises(ValueError, match="there are no pairs; at least one is needed"):
        RetrievalEvaluator(pairs.select([]))
    with pytest.raises(ValueError, match="the mode 'sometimes' is not known; allowed: never, always, auto"):
        RetrievalEvaluator(pairs, ["sometimes"])
