from __future__ import annotations

import dataclasses
import re

import pytest
from trl import GRPOConfig

from mmemb_r1.training import AdaptiveGRPOConfig


@pytest.fixture
def config(tmp_path):
    def build(**changes):
        on_cpu = {"use_cpu": True, "bf16": False, "activation_checkpointing": False}
        return AdaptiveGRPOConfig(output_dir=str(tmp_path), **on_cpu, **changes)

    return build


def fields():
    inherited = {field.name: field for field in dataclasses.fields(GRPOConfig)}
    return {
        field.name: field
        for field in dataclasses.fields(AdaptiveGRPOConfig)
        if field.name not in inherited or field.default != inherited[field.name].default
    }


def test_every_field_has_a_help():
    assert all(field.metadata["help"] for field in fields().values())


@pytest.mark.parametrize(("size", "direct"), [(1, 1), (2, 1), (4, 3), (4, 0), (4, 4)])
def test_a_group_needs_a_direct_rollout_and_two_that_think(config, size, direct):
    with pytest.raises(ValueError, match=f"num_generations={size} with num_direct_rollouts={direct}: a group needs"):
        config(num_generations=size, num_direct_rollouts=direct, per_device_train_batch_size=8)


def test_a_group_must_not_be_spread_over_processes(config, monkeypatch):
    monkeypatch.setattr(GRPOConfig, "world_size", 2, raising=False)  # then 2 x 6 is a multiple of 4, for TRL
    with pytest.raises(ValueError, match="has to be a multiple of num_generations=4"):
        config(per_device_train_batch_size=6, num_generations=4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scorer", "average"),
        ("decision_reward", "gap"),
        ("loss_type", "grpo"),
        ("scale_rewards", "group"),
        ("importance_sampling_level", "sequence"),
    ],
)
def test_choices(config, field, value):
    with pytest.raises(ValueError, match=f"{field}='{value}'; allowed: "):
        config(**{field: value})


@pytest.mark.parametrize(
    "field", ["target_probability_temperature", "gate_learning_rate", "refresh_steps", "utility_clip"]
)
def test_positive_numbers(config, field):
    with pytest.raises(ValueError, match=f"{field}=0 has to be positive"):
        config(**{field: 0})


@pytest.mark.parametrize(
    "field", ["format_weight", "cost_weight", "decision_weight", "rationale_weight", "contrastive_weight"]
)
def test_weights(config, field):
    with pytest.raises(ValueError, match=f"{field}=-1.0; allowed: 0 or more"):
        config(**{field: -1.0})


def test_rewards_by_name(config):
    assert config(rewards='{"collections:OrderedDict": 2}').rewards == {"collections:OrderedDict": 2}
    for rewards, message in (
        ({"cost": 1.0}, "rewards: 'cost' is used already; set its weight with cost_weight"),
        ({"brevity": 1.0}, "there is no reward 'brevity'; allowed: format"),
        ({"collections:OrderedDict": "much"}, "is 'much'; allowed: a finite number"),
        (["cost"], "allowed: a mapping of names or import paths to weights"),
    ):
        with pytest.raises(ValueError, match=message):
            config(rewards=rewards)


@pytest.mark.parametrize("value", [-0.1, 0.5])
def test_the_floor(config, value):
    with pytest.raises(ValueError, match=f"min_decision_prob={value}; allowed"):
        config(min_decision_prob=value)


def test_vllm_is_for_the_trainer_alone(config):
    """TRL, told of it, would load the whole model's folder with it."""
    assert config(use_vllm=True).use_vllm is True
    assert config(use_vllm=True).for_trl(8, 0).use_vllm is False


def test_a_server_of_vllm_is_refused_with_the_reason(config):
    with pytest.raises(ValueError, match="vllm_mode='server'; allowed: 'colocate'.*NCCL.*Leave vllm_mode out"):
        config(use_vllm=True, vllm_mode="server")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("vllm_tensor_parallel_size", 2, "1"),
        ("vllm_enable_sleep_mode", True, "False"),
        ("vllm_model_impl", "transformers", "'vllm'"),
        ("vllm_structured_outputs_regex", "a+", "None"),
    ],
)
def test_options_of_vllm_that_are_not_for_here(config, field, value, allowed):
    with pytest.raises(ValueError, match=re.escape(f"{field}={value!r}; allowed: {allowed}.")):
        config(use_vllm=True, **{field: value})
    assert getattr(config(**{field: value}), field) == value  # nothing to do with a run without it


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_entropy_quantile", 0.5),
        ("entropy_coef", 0.1),
        ("top_p", 0.9),
        ("top_k", 5),
        ("repetition_penalty", 1.1),
        ("generation_kwargs", {"num_beams": 2}),
        ("multi_objective_aggregation", "normalize_then_sum"),
        ("router_aux_loss_coef", 0.01),
        ("mask_truncated_completions", True),
    ],
)
def test_options_of_grpo_without_effect_are_refused(config, field, value):
    with pytest.raises(ValueError, match=f"{field}=.*; allowed: "):
        config(**{field: value})


def test_checkpoints_lie_where_rollouts_are_drawn(config):
    with pytest.raises(ValueError, match="save_steps=3 has to be a multiple of the 2 steps"):
        config(num_iterations=2, save_strategy="steps", save_steps=3)
    config(num_iterations=2, save_strategy="steps", save_steps=4)
    config(num_iterations=2, save_strategy="no", save_steps=3)
    with pytest.raises(ValueError, match="be a multiple of gradient_accumulation_steps=2"):
        config(steps_per_generation=1, gradient_accumulation_steps=2)
