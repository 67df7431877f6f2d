"""The VLM evaluator: what is read once gives the same logits as what is read again for every rationale."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from mmemb_r1.modeling.backbones_mmemb_r1 import rotary_positions
from mmemb_r1.rationale_tokens import append_tokens
from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training.selection.evaluator import Trial, TrialError
from mmemb_r1.training.selection.vlm_evaluator import (
    EvaluatorPrompt,
    PromptRenderer,
    VLMEvaluator,
    answer_ids,
    match_logit,
)


def square(color):
    return Image.new("RGB", (64, 64), color)


RATIONALES = [None, "It is red.", "It may well be blue, or some other color, who knows.", ""]
TRIALS = [
    Trial(
        "query", {"image": [square("red")], "text": "color?"}, [{"text": "red"}, {"text": "light blue"}], RATIONALES
    ),
    Trial("target", {"image": [square("blue")]}, [{"text": "blue"}], RATIONALES[:2]),
    Trial("query", {"text": "red"}, [{"image": [square("red")]}, {"image": [square("gray")]}], RATIONALES[1:]),
]


@pytest.fixture(scope="module", params=["qwen3_vl", "smolvlm", "gemma3"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    for part in build_tiny_vlm(request.param, seed=1):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def evaluator(folder):
    return VLMEvaluator(str(folder), device="cpu", batch_size=3, max_branches=5)


def whole_prompt_logit(evaluator, trial, other, rationale):
    """The same question in one piece, alone, through the model's plain forward pass."""
    vlm, processor = evaluator._vlm, evaluator._renderer.processor
    renderer = PromptRenderer(processor, EvaluatorPrompt.load("evaluator"))
    pair = (trial.anchor, other) if trial.side == "query" else (other, trial.anchor)
    suffix = renderer.suffix(rationale, trial.side)
    inputs = append_tokens(renderer.heads([pair]), [suffix], processor.tokenizer.pad_token_id)
    media = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    positions, _ = rotary_positions(vlm, inputs["input_ids"], inputs["attention_mask"], media)
    with torch.inference_mode():
        logits = vlm(**inputs, position_ids=positions, use_cache=False).logits[:, -1]
    return match_logit(logits, *answer_ids(processor.tokenizer)).item()


def test_shared_prefix_changes_nothing(evaluator):
    for trial, judged in zip(TRIALS, evaluator.match_logits(TRIALS), strict=True):
        assert judged.shape == (len(trial.others), len(trial.rationales)) and judged.dtype == torch.float32
        for row, other in enumerate(trial.others):
            for column, rationale in enumerate(trial.rationales):
                expected = whole_prompt_logit(evaluator, trial, other, rationale)
                assert judged[row, column].item() == pytest.approx(expected, abs=1e-4)
        assert judged.unique().numel() == judged.numel(), "every question was another one"


def test_a_trial_does_not_depend_on_its_neighbours(folder, evaluator):
    together = evaluator.match_logits(TRIALS)
    for trial, expected in zip(TRIALS, together, strict=True):
        (alone,) = evaluator.match_logits([trial])
        assert torch.allclose(alone, expected, atol=1e-4)
    wide = VLMEvaluator(str(folder), device="cpu", batch_size=50)
    for judged, expected in zip(wide.match_logits(TRIALS), together, strict=True):
        assert torch.allclose(judged, expected, atol=1e-4)


def test_an_unreadable_picture_names_its_trial(evaluator):
    bad = Trial("query", {"text": "color?"}, [{"text": "red"}, {"image": ["/no/such/file.png"]}], [None])
    with pytest.raises(TrialError, match="Trial 1 can't be answered: of its target, there is no image file") as error:
        evaluator.match_logits([TRIALS[1], bad])
    assert error.value.index == 1


def test_no_trials_no_logits(evaluator):
    assert evaluator.match_logits([]) == []


def test_definition_holds_what_determines_the_answers_only(folder, evaluator):
    other = VLMEvaluator(str(folder), device="cpu", batch_size=7, prompt="evaluator")
    assert other.definition == evaluator.definition
    assert VLMEvaluator(str(folder), device="cpu", prompt="evaluator-short").definition != evaluator.definition


def test_definition_tells_models_in_the_same_folder_apart(tmp_path):
    definitions = []
    for seed in (0, 1, 0):
        for part in build_tiny_vlm("qwen3_vl", seed=seed):
            part.save_pretrained(tmp_path)
        definitions.append(VLMEvaluator(str(tmp_path), device="cpu").definition)
    assert definitions[0] == definitions[2] != definitions[1]


def test_the_words_of_a_trained_evaluator_are_found_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for part in build_tiny_vlm("qwen3_vl"):
        part.save_pretrained(tmp_path / "own")
    (tmp_path / "own" / "evaluator-prompt.txt").write_text("{query} ~ {target}\n{rationale}\n", encoding="utf-8")
    assert VLMEvaluator("~/own", device="cpu").definition["prompt"].startswith("{query} ~ {target}")


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no folder .*nothing, and it is no Hub id"):
        VLMEvaluator(str(tmp_path / "nothing"))


def test_pictures_may_be_made_smaller(folder, request):
    trial = Trial("query", {"image": [Image.effect_noise((256, 256), 60).convert("RGB")]}, [{"text": "red"}], [None])
    if "qwen3_vl" not in request.node.name:
        with pytest.raises(ValueError, match="max_image_tokens=1: this model's backbone gives each picture"):
            VLMEvaluator(str(folder), device="cpu", max_image_tokens=1)
        return
    plain, small = (VLMEvaluator(str(folder), device="cpu", max_image_tokens=limit) for limit in (None, 1))
    assert abs(plain.match_logits([trial])[0] - small.match_logits([trial])[0]).max() > 1e-4
    assert small.definition == {**plain.definition, "max_image_tokens": 1}
    longer, shorter = (one.reading.measure_input(trial.anchor).tokens for one in (plain, small))
    assert longer == shorter + 3
