"""Rollouts about videos: the policy's probabilities are those of the model that reads the whole prompt itself."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageDraw

from mmemb_r1 import MMEmbR1Model
from mmemb_r1.modeling.decoding_mmemb_r1 import without_suppressed
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.tiny import build_tiny_vlm
from mmemb_r1.training.adaptive.prompts import check_rendering, policy_prompts
from mmemb_r1.training.tables import StoredInputs

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")]
GROUP = 4
WEIGHT_SCALE = 6.0


def drawn(path, color, step):
    """A picture of a block that moves with `step`, so that frames differ."""
    picture = Image.new("RGB", (64, 64), color)
    ImageDraw.Draw(picture).rectangle((8 * step, 8, 8 * step + 16, 56), fill="orange")
    picture.save(path)
    return str(path)


@pytest.fixture
def filmed(tmp_path):
    """Pairs whose queries are text, a picture, videos of four and of two frames, and text."""
    from datasets import Dataset

    red, *frames = [drawn(tmp_path / f"{step}.png", color, step) for step, color in enumerate(["red", *["blue"] * 4])]
    queries = [
        {"text": "say white"},
        {"image": [red], "text": "color? color? color?"},
        {"video": [frames], "text": "color?"},
        {"video": [frames[:2]]},
        {"text": "say black, say blue, say white"},
    ]
    targets = ("white", "red", "blue", "moving", "black")
    rows = [
        {
            "pair_id": f"pair {number}",
            "query": {"text": None, "image": [], "video": [], **query},
            "target": {"text": target},
        }
        for number, (query, target) in enumerate(zip(queries, targets, strict=True))
    ]
    return Dataset.from_list(rows)


@torch.no_grad()
def build(family):
    """A tiny model whose vectors, gate and words depend on what it is shown."""
    vlm, processor = build_tiny_vlm(family, texts=["It is red. color? say blue white black moving"])
    for parameter in vlm.parameters():
        if parameter.ndim > 1:
            parameter.mul_(WEIGHT_SCALE)
    model, processor = MMEmbR1Model.from_vlm(vlm, processor)
    model.gate.output.weight.normal_(generator=torch.Generator().manual_seed(0))
    return model, processor


@torch.no_grad()
def own_logps(model, processor, query, completion):
    """Log-probabilities of what was chosen, from the states of the prompt and its completion, read alone."""
    config, batch = model.config, dict(render(processor, to_conversations([query])))
    prompt = batch["input_ids"]
    ids = torch.cat([prompt, completion[None]], dim=1)
    zeros = torch.zeros_like(completion)[None]
    batch = {
        name: torch.cat([value, zeros], dim=1) if value.shape == prompt.shape else value
        for name, value in batch.items()
    }
    states = model(**{**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).last_hidden_state[0]
    words = without_suppressed(model.get_output_embeddings()(states), config).log_softmax(dim=-1)
    gate = model.gate(states)
    found, start = [], prompt.shape[1]
    for place in range(start, ids.shape[1]):
        token = int(ids[0, place])
        if token == config.embed_token_id:
            found.append(0.0)
        elif int(ids[0, place - 1]) == config.embed_token_id:
            logit = gate[place - 1]
            found.append(torch.nn.functional.logsigmoid(logit if token == config.think_token_id else -logit).item())
        else:
            found.append(words[place - 1, token].item())
    return prompt[0], torch.tensor(found)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "smolvlm", "internvl"])
def test_log_probabilities_are_those_of_the_model_that_reads_each_prompt_alone(trainer_of, filmed, family):
    """Rows of other lengths, with other media or none; in parts, as TRL goes through them, and all at once."""
    model, processor = build(family)
    model = model.double()  # what is left of rounding is that of the results, which are float32
    size = len(filmed) * GROUP
    options = {"num_generations": GROUP, "num_iterations": 2, "beta": 0.1, "per_device_train_batch_size": size // 2}
    trainer = trainer_of(model, filmed, processing_class=processor, gradient_accumulation_steps=2, **options)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inputs = [trainer.train_dataset[row] for row in range(len(filmed)) for _ in range(GROUP)]
    batch = trainer._generate_and_score_completions(inputs)
    queries = StoredInputs(filmed, "query")
    reasoned = 0
    for row in range(size):
        kept = batch["completion_mask"][row].bool()
        completion = batch["completion_ids"][row][kept]
        prompt, expected = own_logps(model.eval(), processor, queries[row // GROUP], completion)
        assert torch.equal(batch["prompt_ids"][row][batch["prompt_mask"][row].bool()], prompt)
        reasoned += len(expected) > 1
        chosen = batch["tool_mask"][row][kept].bool()
        for name in ("old_per_token_logps", "ref_per_token_logps"):  # no step was taken yet
            torch.testing.assert_close(batch[name][row][kept][chosen], expected[chosen], rtol=0, atol=1e-6)
    assert reasoned == size * 3 // GROUP
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.isfinite()


def test_training_in_parts_of_which_some_have_no_video(trainer_of, filmed, monkeypatch):
    model, processor = build("qwen3_vl")
    options = {"num_generations": GROUP, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 6}
    trainer = trainer_of(
        model,
        filmed.select([0, 1, 2]),
        processing_class=processor,
        eval_dataset=filmed.select([0, 3]),
        per_device_eval_batch_size=2 * GROUP,
        max_steps=2,
        log_completions=True,
        **options,
    )
    step, held = trainer._compute_loss, []

    def watched(model, inputs):
        held.append(
            tuple(any(name in one for one in inputs["rendered"]) for name in ("pixel_values", "pixel_values_videos"))
        )
        return step(model, inputs)

    monkeypatch.setattr(trainer, "_compute_loss", watched)
    trainer.train()
    assert {(False, False), (True, False), (False, True)} <= set(held)
    losses, norms = ([log[name] for log in trainer.state.log_history if name in log] for name in ("loss", "grad_norm"))
    assert len(losses) == 2 and all(map(math.isfinite, losses)) and all(norm > 0 for norm in norms)
    measured = trainer.evaluate()
    assert math.isfinite(measured["eval_loss"]) and "eval_auto_mrr" in measured


def test_token_types_of_videos_belong_to_the_ids(trainer_of, filmed):
    model, processor = build("qwen3_vl")
    trainer = trainer_of(model, filmed, processing_class=processor, per_device_train_batch_size=8)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    batch = trainer._generate_and_score_completions([trainer.train_dataset[row] for row in (0, 2) for _ in range(4)])
    for prompt in {id(one): one for one in batch["rendered"]}.values():
        prompt["mm_token_type_ids"] = prompt["mm_token_type_ids"].roll(1, dims=1)
    with pytest.raises(ValueError, match="marks other tokens as videos than those with id"):
        trainer._compute_loss(trainer.model, batch)


def test_frames_are_sampled_as_the_model_was_told(trainer_of, filmed):
    """A video file or a list of frames is read as `encode` reads it: with the limits of the config."""
    model, processor = build("qwen3_vl")
    model.config.max_video_frames = 3
    with pytest.raises(ValueError, match="pair 2"):
        trainer_of(model, filmed, processing_class=processor)


def test_a_backbone_without_videos_refuses_them_at_start(trainer_of, filmed):
    model, processor = build("gemma3")
    with pytest.raises(ValueError, match="pair 2"):
        trainer_of(model, filmed, processing_class=processor)


def test_a_prompt_with_a_video_is_checked_for_its_marker(filmed):
    _, processor = build("qwen3_vl")
    with pytest.raises(ValueError, match=r"pair 'pair 2' does not end in `<\|embed\|>` \(id -1\)"):
        check_rendering(policy_prompts(filmed.select([2]), processor), processor, SimpleNamespace(embed_token_id=-1))
