"""Rationales of the adaptive phase by vLLM, in the process that trains: they are those that the policy would write."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render

BUDGET, GROUP = 8, 3
NEARLY_GREEDY = 1e-6  # of the local decoder; vLLM takes 0 for greedy


def square(color):
    picture = Image.new("RGB", (64, 64), color)
    ImageDraw.Draw(picture).rectangle((8, 8, 24, 56), fill="orange")
    return picture


INPUTS = [
    {"text": "say blue"},
    {"image": square("red"), "text": "color?"},
    {"text": "a longer text with much more to say about it than the others"},
    {"image": [square("blue"), square("green").resize((96, 32))], "text": "both?"},
]


@pytest.fixture(scope="module")
def config_of(tmp_path_factory):
    from mmemb_r1.training import AdaptiveGRPOConfig

    def make(**changes):
        settings = {
            "output_dir": str(tmp_path_factory.mktemp("run")),
            "per_device_train_batch_size": 8,
            "max_reasoning_tokens": BUDGET,
            "max_input_tokens": 512,
            "use_vllm": True,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "bf16": False,
            "activation_checkpointing": False,
            "report_to": [],
            "disable_tqdm": True,
        }
        return AdaptiveGRPOConfig(**{**settings, **changes})

    return make


@pytest.fixture(scope="module")
def started(make_vllm_model, config_of):
    """`started(model, processor, temperature, **config)`: an engine that writes as this model; ended at last."""
    from mmemb_r1.training.adaptive.vllm_rationales import VllmRationales

    engines = []

    def start(model, processor, temperature=0.0, **config):
        engine = VllmRationales(model, processor, config_of(**config), torch.device("cpu"))
        engine._temperature = temperature
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture
def policy(make_vllm_model):
    """A policy that reasons twice."""
    module = make_vllm_model(max_reasoning_rounds=2)[0]
    model, processor = copy.deepcopy(module.model), module.processor
    with torch.no_grad():
        model.gate.output.weight.zero_()
        model.gate.output.bias.fill_(30.0)
    return model, processor


def rolled(model, processor, engine=None, rounds=2):
    """Greedy rollouts, by an engine or by the model itself."""
    from mmemb_r1.training.adaptive.rollouts import roll_out

    chats = to_conversations(INPUTS)
    batch = dict(render(processor, chats))
    writer = None
    if engine is not None:
        kept = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
        writer = engine.of(chats, [ids[mask].tolist() for ids, mask in kept])
    return roll_out(
        model, batch, GROUP, max_tokens=BUDGET, max_rounds=rounds, temperature=NEARLY_GREEDY, writer=writer
    )


def check_equal(own, others):
    assert others.rationales == own.rationales
    for name in ("num_tokens", "num_rounds", "num_forced", "thinks"):
        assert torch.equal(getattr(others, name), getattr(own, name)), name
    for name in ("direct", "reasoned", "gate_logits"):
        torch.testing.assert_close(getattr(others, name), getattr(own, name), rtol=1e-4, atol=1e-4)


def shake(parameters, scale, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            if parameter.numel() > 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale * parameter.std())


def test_greedy_rationales_are_the_policys_before_and_after_its_weights_change(policy, started):
    model, processor = policy
    first = rolled(model, processor)
    model.config.end_think_token_id = first.rationales[0][4]  # one that ends in between
    engine = started(model, processor)
    engine.sync_weights()
    before = rolled(model, processor)
    assert {2} == set(before.num_rounds.tolist()) and not before.num_forced.all()
    check_equal(before, rolled(model, processor, engine))

    vision = [parameter for name, parameter in model.vlm.named_parameters() if "visual" in name]
    for changed in (vision, model.vlm.parameters()):  # what it kept of pictures is computed again, too
        shake(changed, 0.3)
        own = rolled(model, processor)
        assert own.rationales != before.rationales
        stale = rolled(model, processor, engine)
        assert stale.rationales != own.rationales  # it has other weights until it gets them
        engine.sync_weights()
        check_equal(own, rolled(model, processor, engine))
        before = own


def test_adapters_are_merged_for_it_and_stay_as_they_are(policy, started):
    from mmemb_r1.training.adapters import lora_config, with_adapters

    model, processor = policy
    wrapped = with_adapters(model, lora_config(model, r=4, adapt_vision_tower=True))
    engine = started(wrapped, processor)
    engine.sync_weights()
    before = rolled(model, processor)
    check_equal(before, rolled(model, processor, engine))
    shake((weight for weight in wrapped.parameters() if weight.requires_grad), 0.5)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    weights = {name: value.clone() for name, value in wrapped.state_dict().items()}
    own = rolled(model, processor)
    assert own.rationales != before.rationales
    engine.sync_weights()
    check_equal(own, rolled(model, processor, engine))
    assert all(torch.equal(value, weights[name]) for name, value in wrapped.state_dict().items())


@pytest.fixture(scope="module")
def sampling(make_vllm_model, started):
    """An engine that draws, its model and processor, and the states of generators before and after its start."""
    module = make_vllm_model()[0]

    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = state()
    engine = started(module.model, module.processor, temperature=1.0, per_device_train_batch_size=16)
    return engine, module.model, module.processor, before, state()


def prompts_of(engine, processor):
    chats = to_conversations(INPUTS)
    return engine.of(chats, [render(processor, [chat])["input_ids"][0].tolist() for chat in chats])


def test_what_is_drawn_follows_from_its_seed_and_from_nothing_beside_it(sampling):
    engine, model, processor, *_ = sampling
    writer, opening = prompts_of(engine, processor), list(model.config.opening_ids)
    together = writer.write([(0, opening), (1, opening), (1, opening), (3, opening)], BUDGET + 1, [1, 2, 3, 4])
    alone = [writer.write([(place, opening)], BUDGET + 1, [seed])[0] for place, seed in ((3, 4), (1, 2))]
    assert [one.ids for one in alone] == [together[3].ids, together[1].ids]
    assert together[1].ids != together[2].ids
    for one in together:
        assert not set(one.ids) & set(model.config.suppressed_token_ids)
        assert max(one.logps) <= 0 and len(one.logps) == len(one.ids) <= BUDGET + 1


def test_more_than_is_read_at_once_is_drawn_from_seeds_too(sampling):
    engine, model, processor, *_ = sampling
    writer = prompts_of(engine, processor)
    begun = [(0, [*model.config.opening_ids, *[40 + number] * 380]) for number in range(16)]  # 6,000 tokens
    together = writer.write(begun, BUDGET + 1, list(range(16)))
    for place in (0, 15):
        assert writer.write([begun[place]], BUDGET + 1, [place])[0].ids == together[place].ids


def test_a_prompt_that_it_reads_otherwise_is_an_error(sampling):
    engine, model, processor, *_ = sampling
    chats = to_conversations(INPUTS[:2])
    ids = [render(processor, [chat])["input_ids"][0].tolist() for chat in chats]
    ids[1] = ids[1][:-2] + ids[1][-1:]
    with pytest.raises(ValueError, match=f"reads prompt 1 of a batch as {len(ids[1]) + 2} tokens.*use_vllm=False"):
        engine.of(chats, ids).write([(1, list(model.config.opening_ids))], 2, [0])


def test_starting_it_leaves_generators_as_they_are(sampling):
    assert sampling[3] == sampling[4]


def test_what_it_can_not_start_with_says_what_to_change(make_vllm_model, config_of):
    from mmemb_r1.training.adaptive.vllm_rationales import VllmRationales

    module = make_vllm_model()[0]
    with pytest.raises(ValueError, match="(?s)vLLM could not start with .* follow from max_input_tokens"):
        VllmRationales(module.model, module.processor, config_of(max_input_tokens=10**6), torch.device("cpu"))


def pairs():
    from datasets import Dataset

    colors = ("red", "green", "blue", "white", "black", "gray")
    return Dataset.from_list(
        [
            {
                "pair_id": f"pair {number}",
                "query": {"text": "color?", "image": square(color)} if number % 2 else {"text": f"say {color}"},
                "target": {"text": color},
            }
            for number, color in enumerate(colors)
        ]
    )


def test_two_steps_log_what_they_log_without_it(make_vllm_model, config_of):
    from mmemb_r1.training import AdaptiveGRPOTrainer

    logged = {}
    for use_vllm in (False, True):
        module = make_vllm_model()[0]
        config = config_of(use_vllm=use_vllm, max_steps=2, max_reasoning_rounds=2)
        trainer = AdaptiveGRPOTrainer(copy.deepcopy(module.model), config, pairs(), module.processor)
        trainer.train()
        logged[use_vllm] = [log for log in trainer.state.log_history if "loss" in log]
        if use_vllm:
            trainer.vllm_generation.close()
    without, beside = (set(logged[use_vllm][0]) for use_vllm in (False, True))
    assert beside - without == {
        *(f"sampling/sampling_logp_difference/{kind}" for kind in ("mean", "max")),
        *(f"sampling/importance_sampling_ratio/{kind}" for kind in ("min", "mean", "max")),
    }
    assert without <= beside
    for step, log in enumerate(logged[True]):
        assert log["sampling/importance_sampling_ratio/min"] == pytest.approx(1, abs=1e-3), step
        assert log["sampling/importance_sampling_ratio/max"] == pytest.approx(1, abs=1e-3), step
        assert log["sampling/sampling_logp_difference/max"] < 1e-3
        assert log["rationale/tokens"] > 0 and np.isfinite(log["loss"])
