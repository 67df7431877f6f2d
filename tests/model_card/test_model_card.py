from __future__ import annotations

import re

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from mmemb_r1.evaluation import load_results, save_results
from mmemb_r1.model_card import build_model_card

NUMBERS = {"mrr": 0.5, "invocation_ratio": 0.25, "mean_reasoning_tokens": 3.5, "seconds_per_query": 0.01}


@pytest.fixture
def results(tmp_path):
    modes = {"never": {"hit@1": 0.25, **NUMBERS}, "always": {"hit@1": 0.75, **NUMBERS}}
    task = {
        "complexity": "simple",
        "n": 8,
        "candidates": 4,
        "modes": modes,
        "majority": 0.125,
        "no_image": {"never": 0.5},
    }
    plain = {"complexity": "simple", "n": 8, "candidates": 4, "modes": modes}
    path = tmp_path / "results.json"
    save_results(
        {
            "config": {"modes": ["never", "always"], "split": "test"},
            "tasks": {"picture-name": task, "fact-capital": plain},
            "summary": {name: {"tasks": 2, "n": 16, "modes": modes} for name in ("simple", "all")},
        },
        path,
    )
    return path


def test_metadata_is_what_the_hub_expects(tiny_checkpoint, results):
    card = ModelCard(
        build_model_card(
            tiny_checkpoint, results, base_model="some/backbone", training={"steps": 3}, license="apache-2.0"
        )
    )
    assert card.data.library_name == "sentence-transformers"
    assert (card.data.base_model, card.data.license) == ("some/backbone", "apache-2.0")
    assert {"multimodal", "sentence-transformers"} <= set(card.data.tags)
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    groups = [entry["dataset"]["config"] for entry in card.data.to_dict()["model-index"][0]["results"]]
    assert sorted(groups) == sorted(load_results(results)["summary"])
    assert values == {"hit@1, reasoning=never": 0.25, "hit@1, reasoning=always": 0.75}
    assert "| steps | 3 |" in card.text


def test_results_are_those_of_the_file(tiny_checkpoint, results):
    text = build_model_card(tiny_checkpoint, results)
    assert "Atlas, test split" in text
    assert "| picture-name | 8 | 0.125 | 0.500 | 0.250 | 0.750 |" in text
    assert "| fact-capital | 8 |  |  | 0.250 | 0.750 |" in text
    assert "| always | 25% | 3.5 | 10.0 |" in text


def test_what_is_not_known_is_left_out(tiny_checkpoint):
    text = build_model_card(tiny_checkpoint)
    card = ModelCard(text)
    assert card.data.license is None
    assert card.data.base_model is None
    assert card.data.eval_results is None
    assert "## Results" not in text
    assert "## Training" not in text
    assert not re.search(r"\bNone\b|\$\w|nan", text)


def test_facts_are_those_of_the_checkpoint(tiny_checkpoint):
    from mmemb_r1 import MMEmbR1

    text = build_model_card(tiny_checkpoint)
    model = MMEmbR1(str(tiny_checkpoint), device="cpu")
    assert f"| embedding dimensions | {model.get_embedding_dimension()} |" in text
    assert f"| parameters | {sum(weight.numel() for weight in model.parameters()):,} |" in text
    assert "| backbone | qwen3_vl |" in text
    assert "| rationale budget | 8 tokens, 1 rounds at most |" in text


def test_the_snippets_run(tiny_checkpoint, monkeypatch, capsys):
    snippets = re.findall(r"```python\n(.*?)```", build_model_card(tiny_checkpoint), flags=re.DOTALL)
    monkeypatch.chdir(tiny_checkpoint.parent)
    Image.new("RGB", (64, 64), "red").save("picture.png")
    for snippet in snippets:
        exec(compile(snippet, "model card", "exec"), {})
    shown = capsys.readouterr().out
    assert len(snippets) == 3
    assert "torch.Size([1, 32])" in shown


def test_refuses_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        build_model_card(tmp_path)
