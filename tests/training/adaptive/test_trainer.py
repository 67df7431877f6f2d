from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from mmemb_r1.modeling.heads_mmemb_r1 import ReasoningGate
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.training import AdaptiveGRPOTrainer
from mmemb_r1.training.adaptive.prompts import with_pictures
from mmemb_r1.training.base_trainer import last_checkpoint
from mmemb_r1.training.gate import StopOnCollapse

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")]


@pytest.fixture
def one_group(trainer_of, vivid, rows):
    """A trainer after it has scored the rollouts of three queries, and the batch."""

    def build(**changes):
        trainer = trainer_of(vivid, rows, **changes)
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        size = trainer.num_generations
        inputs = [copy.copy(trainer.train_dataset[row]) for row in (0, 1, 13) for _ in range(size)]
        return trainer, trainer._generate_and_score_completions(inputs)

    return build


@pytest.mark.parametrize("side", ["left", "right"])
def test_token_types_are_those_of_the_ids_whatever_the_tokenizer_was_set_to(
    trainer_of, vivid, mixed, processor, side, monkeypatch
):
    """Prompts of different lengths with 0, 1 and 2 pictures: TRL pads ids itself, and types as the tokenizer does."""
    monkeypatch.setattr(processor.tokenizer, "padding_side", side)
    trainer = trainer_of(vivid, mixed, per_device_train_batch_size=32)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    batch = trainer._generate_and_score_completions([trainer.train_dataset[row] for row in range(8) for _ in range(4)])
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    assert ((batch["mm_token_type_ids"] == 1) == (ids == vivid.config.vlm_config.image_token_id)).all()
    assert trainer._compute_loss(trainer.model, batch).isfinite()
    assert processor.tokenizer.padding_side == side
    batch["mm_token_type_ids"] = batch["mm_token_type_ids"].roll(1, dims=1)
    with pytest.raises(ValueError, match="marks other tokens as pictures"):
        trainer._compute_loss(trainer.model, batch)


def test_a_part_of_accumulated_batches_may_have_no_pictures(trainer_of, vivid, rows):
    """TRL parts the rollouts of a step: pictures and their sizes are empty in a part of text alone."""
    six = rows.select([0, 1, 6, 7, 12, 13])  # queries of the first two have a picture
    trainer = trainer_of(vivid, six, per_device_train_batch_size=4, gradient_accumulation_steps=6, max_steps=1)
    step, held = trainer._compute_loss, []

    def watched(model, inputs):
        held.append(len(inputs["image_grid_thw"]) > 0)
        return step(model, inputs)

    trainer._compute_loss = watched
    trainer.train()
    assert set(held) == {True, False}
    assert math.isfinite(logged(trainer, "loss")[0]) and logged(trainer, "grad_norm")[0] > 0


def logged(trainer, name):
    return [log[name] for log in trainer.state.log_history if name in log]


@pytest.mark.parametrize("probability", [0.01, 0.5, 0.99])
@pytest.mark.parametrize(("size", "direct"), [(4, 1), (6, 3), (5, 1)])
def test_the_gate_gets_the_policy_gradient(one_group, vivid, probability, size, direct):
    """d loss / d logit of a group is -p (1 - p) (Q_r - Q_d), from rollouts to gradient."""
    with torch.no_grad():
        vivid.gate.output.weight.zero_()
        vivid.gate.output.bias.fill_(math.log(probability / (1 - probability)))
    trainer, batch = one_group(
        num_generations=size,
        num_direct_rollouts=direct,
        per_device_train_batch_size=3 * size,
        contrastive_weight=0.0,
        min_decision_prob=0.0,
        decision_weight=2.0,
    )
    rewards = trainer._rewards.view(3, size)
    gap = rewards[:, direct:].mean(dim=1) - rewards[:, :direct].mean(dim=1)
    trainer._compute_loss(trainer.model, batch).backward()
    expected = -2.0 * probability * (1 - probability) * gap.mean()
    assert vivid.gate.output.bias.grad.item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-7)


def test_rationales_do_not_touch_the_gate_and_decisions_nothing_else(one_group, vivid):
    trainer, batch = one_group(contrastive_weight=0.0, decision_weight=0.0)
    trainer._compute_loss(trainer.model, batch).backward()
    assert not vivid.gate.output.bias.grad.any()
    assert vivid.get_input_embeddings().weight.grad.abs().sum() > 0
    vivid.zero_grad()
    trainer, batch = one_group(contrastive_weight=0.0, rationale_weight=0.0)
    trainer._compute_loss(trainer.model, batch).backward()
    assert vivid.gate.output.bias.grad.any()
    assert all(not p.grad.any() for n, p in vivid.named_parameters() if p.grad is not None and "gate" not in n)


def test_the_rationale_loss_is_the_mean_over_its_tokens(one_group, vivid):
    trainer, batch = one_group(contrastive_weight=0.0, decision_weight=0.0, rationale_weight=3.0)
    loss = trainer._compute_loss(trainer.model, batch)
    rewards = trainer._rewards.view(3, 4)[:, 1:]
    advantages = (rewards - (rewards.sum(dim=1, keepdim=True) - rewards) / 2).flatten()
    chosen = (batch["completion_mask"] * batch["tool_mask"])[:, 1:].sum(dim=1)[
        torch.arange(12).view(3, 4)[:, 1:].flatten()
    ]
    expected = -3.0 * (advantages * chosen).sum() / chosen.sum()  # the ratio is 1 before the first step
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)


def test_the_contrastive_term_is_of_the_live_vectors(one_group, vivid):
    trainer, batch = one_group(decision_weight=0.0, rationale_weight=0.0, contrastive_weight=0.5)
    loss = trainer._compute_loss(trainer.model, batch)
    # the live model is the frozen one still, so that its vectors are those that were scored
    probability = trainer._fields["target_probability"]
    direct = probability.view(3, 4)[:, :1].expand(3, 4).flatten()
    expected = 0.5 * -(probability.log().mean() + direct.log().mean()) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    loss.backward()
    assert vivid.get_input_embeddings().weight.grad.abs().sum() > 0


def test_scores_of_a_live_scorer_are_those_of_a_frozen_copy_before_the_first_step(one_group):
    torch.manual_seed(0)
    frozen, _ = one_group()
    torch.manual_seed(0)
    live, _ = one_group(scorer="live")
    assert live._frozen is None
    torch.testing.assert_close(
        live._fields["target_probability"], frozen._fields["target_probability"], rtol=1e-3, atol=1e-4
    )


def test_training_moves_everything_and_leaves_the_scorer(trainer_of, vivid, rows):
    before = copy.deepcopy(vivid.state_dict())
    trainer = trainer_of(vivid, rows, per_device_train_batch_size=24)
    trainer.train()
    used = {name for name, parameter in vivid.named_parameters() if parameter.requires_grad}
    after = vivid.state_dict()
    still = {name for name in used if torch.equal(before[name], after[name])}
    assert {"gate.output.weight", "gate.output.bias"}.isdisjoint(still)
    assert not [name for name in still if "language_model" in name or "visual.patch_embed" in name]
    with trainer._frozen.run() as frozen:
        assert frozen is not trainer.model
        assert all(torch.equal(before[name], value) for name, value in frozen.state_dict().items())
    assert len(logged(trainer, "loss")) == 2 and all(map(math.isfinite, logged(trainer, "loss")))
    names = ("gate/prob", "gate/thinks", "utility_gap", "rationale/tokens", "rewards/cost_reward/mean", "contrastive")
    for name in names:
        assert len(logged(trainer, name)) == 2, name


def test_the_gate_has_its_own_learning_rate(trainer_of, vivid, rows):
    before = copy.deepcopy(vivid.state_dict())
    trainer_of(vivid, rows, learning_rate=0.0, gate_learning_rate=0.1, max_steps=1).train()
    after = vivid.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "gate.output.weight",
        "gate.output.bias",
    }


@pytest.mark.parametrize("read", [["state"], ["state", "words"]])
def test_a_gate_with_a_hidden_layer_is_trained(trainer_of, vivid, rows, read):
    """What is standardised are the inputs of the layer that reads the state, whatever the optimiser's order."""
    vivid.config.gate_hidden_size, vivid.config.gate_inputs = 8, read
    vivid.gate = ReasoningGate(vivid.config)
    before = copy.deepcopy(vivid.gate.state_dict())
    trainer_of(vivid, rows, gate_learning_rate=0.1).train()
    assert not any(torch.equal(before[name], after) for name, after in vivid.gate.state_dict().items())


@pytest.mark.slow
def test_the_gate_learns_what_pays(trainer_of, vivid, rows):
    """Thinking about pictures pays, about text it does not, whatever is thought."""

    def pays(prompts, reasoned, **_):
        seen = [any(part["type"] == "image" for message in chat for part in message["content"]) for chat in prompts]
        return [float(thought == picture) for thought, picture in zip(reasoned, seen, strict=True)]

    vivid.gate.reset()
    weights = {"target_probability_weight": 0.0, "cost_weight": 0.0, "format_weight": 0.0, "contrastive_weight": 0.0}
    trainer = trainer_of(
        vivid,
        rows,
        reward_funcs=[pays],
        max_steps=100,
        per_device_train_batch_size=24,
        learning_rate=0.0,
        gate_learning_rate=0.03,
        max_reasoning_tokens=1,
        logging_steps=100,
        **weights,
    )
    trainer.train()
    queries = [trainer.train_dataset[row] for row in (0, 1, 2, 12, 13, 14)]
    prompts = [with_pictures(query["prompt"], query["images"]) for query in queries]
    batch = render(trainer.processing_class, to_conversations(prompts))
    with torch.no_grad():
        probs = vivid.eval().embed(**batch, reasoning="never").gate_prob.tolist()
    assert min(probs[:3]) > 0.5 > max(probs[3:]), probs


@pytest.mark.parametrize("changes", [{"num_iterations": 2}, {"beta": 0.1}, {"decision_reward": "utility"}])
def test_options_of_grpo(trainer_of, vivid, rows, changes):
    trainer = trainer_of(vivid, rows, max_steps=4, **changes)
    trainer.train()
    assert all(map(math.isfinite, logged(trainer, "loss")))
    if "beta" in changes:
        assert logged(trainer, "kl")[0] == pytest.approx(0.0, abs=1e-6)  # reference and policy agree at first
        assert logged(trainer, "kl")[-1] > 0


def test_ratios_are_one_until_the_policy_moves(one_group):
    trainer, batch = one_group(num_iterations=2)
    with torch.no_grad():
        args = (trainer.model, torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1))
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        media = {k: batch[k] for k in ("pixel_values", "image_grid_thw", "mm_token_type_ids", "num_images")}
        found, _, _ = trainer._get_per_token_logps_and_entropies(
            *args, mask, batch["completion_ids"].shape[1], **media
        )
    torch.testing.assert_close(batch["old_per_token_logps"], found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"beta": 0.1}, {"refresh_steps": 2}])
def test_a_live_scorer_embeds_its_candidates_anew(trainer_of, vivid, rows, changes, monkeypatch):
    trainer = trainer_of(vivid, rows, max_steps=4, scorer="live", **{"refresh_steps": 1, **changes})
    scorer, calls = trainer._scorers["train"], []
    forget = scorer.forget

    def spy():
        calls.append(trainer.state.global_step)
        forget()

    monkeypatch.setattr(scorer, "forget", spy)
    trainer.train()
    assert calls == ([0, 2] if changes == {"refresh_steps": 2} else [0, 1, 2, 3])


def test_the_logged_gate_is_the_one_that_encode_asks(one_group, vivid):
    with torch.no_grad():
        vivid.gate.output.weight.zero_()
        vivid.gate.output.bias.fill_(1.0)
    vivid.config.gate_threshold = 0.75  # sigmoid(1) is below, sigmoid(1 / 0.5) is above
    trainer, _ = one_group(temperature=0.5)
    assert trainer._metrics["train"]["gate/prob"] == [pytest.approx(0.7311, abs=1e-4)]
    assert trainer._metrics["train"]["gate/thinks"] == [0.0]


@pytest.mark.parametrize(
    ("version", "model", "message"),
    [
        (None, SimpleNamespace(), "not FSDP1 or DeepSpeed"),
        (1, SimpleNamespace(), "not FSDP1 or DeepSpeed"),
        (2, SimpleNamespace(peft_config={}), "does not shard a model with adapters"),
    ],
)
def test_what_cant_shard_the_model_is_refused(version, model, message):
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=version, mixed_precision_policy=None))
    sharded = SimpleNamespace(
        is_fsdp_enabled=version is not None,
        is_deepspeed_enabled=version is None,
        accelerator=SimpleNamespace(state=state),
        model=model,
    )
    with pytest.raises(ValueError, match=message):
        AdaptiveGRPOTrainer._check_sharding(sharded)


def test_two_rounds(trainer_of, vivid, rows):
    with torch.no_grad():
        vivid.gate.output.bias.fill_(3.0)
    trainer = trainer_of(vivid, rows, max_reasoning_rounds=2)
    trainer.train()
    assert max(logged(trainer, "rationale/rounds")) > 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_an_error_at_once(trainer_of, vivid, rows, value):
    def broken(completions, **_):
        return [value if row == 1 else 0.0 for row in range(len(completions))]

    with pytest.raises(
        ValueError, match=r"after 0 steps the reward 'broken' is (nan|inf) for a rollout of pair 'pair"
    ):
        trainer_of(vivid, rows, reward_funcs=[broken]).train()


def test_tables_are_checked_at_start(trainer_of, vivid, rows):
    with pytest.raises(ValueError, match="has no column 'target'"):
        trainer_of(vivid, rows.remove_columns("target"))


def test_prompts_without_a_marker_are_refused_at_start(trainer_of, vivid, rows, processor):
    bare = copy.copy(processor)
    bare.chat_template = processor.chat_template.replace("<|embed|>", "")
    with pytest.raises(ValueError, match="does not end in"):
        trainer_of(vivid, rows, processing_class=bare)


def test_a_collapsed_gate_stops_training(trainer_of, vivid, rows):
    with torch.no_grad():
        vivid.gate.output.weight.zero_()
        vivid.gate.output.bias.fill_(-9.0)
    trainer = trainer_of(vivid, rows, max_steps=6, stop_on_collapse=2, gate_learning_rate=1e-9)
    trainer.train()
    assert trainer.state.global_step == 2


def test_one_log_of_a_working_gate_resets_the_patience():
    from transformers import TrainerControl

    callback, control = StopOnCollapse(2), TrainerControl()
    for share in (0.0, 0.5, 1.0):
        callback.on_log(None, None, control, {"gate/thinks": share})
        assert not control.should_training_stop
    callback.on_log(None, None, control, {"gate/thinks": 0.999})
    assert control.should_training_stop


def test_resuming_gives_the_same_weights(trainer_of, vivid, rows, tmp_path):
    start = copy.deepcopy(vivid)
    whole = trainer_of(vivid, rows, max_steps=4, output_dir=str(tmp_path / "whole"))
    whole.train()
    options = {"max_steps": 4, "output_dir": str(tmp_path / "parts"), "save_strategy": "steps", "save_steps": 2}
    trainer_of(copy.deepcopy(start), rows, **options).train()
    (Path(tmp_path) / "parts" / "checkpoint-4").rename(tmp_path / "unused")
    resumed = trainer_of(copy.deepcopy(start), rows, **options)
    resumed.train(resume_from_checkpoint=last_checkpoint(tmp_path / "parts"))
    assert resumed.state.global_step == 4
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0, msg=name)
    saved = load_file(tmp_path / "parts" / "checkpoint-2" / "model.safetensors")
    assert any("gate" in name for name in saved)
    assert json.loads((tmp_path / "parts" / "checkpoint-2" / "trainer_state.json").read_text())["global_step"] == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters(trainer_of, vivid, rows, dtype):
    from mmemb_r1.training.adapters import lora_config, with_adapters

    wrapped = with_adapters(vivid.to(dtype), lora_config(vivid, r=2))
    before = {name: value.clone() for name, value in wrapped.named_parameters()}
    trainer_of(wrapped, rows, gate_learning_rate=0.1).train()
    moved = {name for name, value in wrapped.named_parameters() if not torch.equal(value, before[name])}
    assert any("lora_" in name for name in moved) and any("gate" in name for name in moved)
    assert moved <= {name for name, value in wrapped.named_parameters() if value.requires_grad}


def test_activation_checkpointing(trainer_of, vivid, rows):
    trainer = trainer_of(vivid, rows, activation_checkpointing=True, max_steps=1)
    trainer.train()
    assert math.isfinite(logged(trainer, "loss")[0])
