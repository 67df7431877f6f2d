from __future__ import annotations

import dataclasses

import pytest
from trl.trainer.base_config import _BaseConfig

from mmemb_r1.training import JointConfig


@pytest.fixture
def config(tmp_path):
    def build(**changes):
        on_cpu = {"use_cpu": True, "bf16": False, "activation_checkpointing": False}
        return JointConfig(output_dir=str(tmp_path), **on_cpu, **changes)

    return build


def fields():
    inherited = {field.name: field for field in dataclasses.fields(_BaseConfig)}
    return {
        field.name: field.default
        for field in dataclasses.fields(JointConfig)
        if field.name not in inherited or field.default != inherited[field.name].default
    }


def test_every_field_has_a_help():
    for field in dataclasses.fields(JointConfig):
        if field.name in fields():
            assert field.metadata["help"], field.name


def test_the_sub_batch_has_to_divide_the_batch(config):
    with pytest.raises(ValueError, match="sub_batch_size=3 has to divide per_device_train_batch_size=8"):
        config(per_device_train_batch_size=8, sub_batch_size=3)
    with pytest.raises(ValueError, match="sub_batch_size=0 has to divide"):
        config(sub_batch_size=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("auto_find_batch_size", True),
        ("dataloader_drop_last", True),
        ("label_smoothing_factor", 0.1),
        ("train_sampling_strategy", "group_by_length"),
    ],
)
def test_options_without_effect_are_refused(config, name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r} has no effect in this phase; leave it out"):
        config(**{name: value})


@pytest.mark.parametrize("value", [0, -0.1, float("nan")])
def test_the_temperature_has_to_be_positive(config, value):
    with pytest.raises(ValueError, match=f"temperature={value} has to be positive"):
        config(temperature=value)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("max_reasoning_rounds", 1),
        ("num_length_chunks", 1),
        ("similarity_chunk_size", 1),
        ("max_rationale_tokens", 1),
        ("mini_batch_size", 1),
        ("mini_batch_tokens", 1),
        ("num_hard_negatives", 0),
    ],
)
def test_numbers_below_the_least_are_refused(config, name, least):
    assert getattr(config(**{name: least}), name) == least
    with pytest.raises(ValueError, match=f"{name}={least - 1}; allowed: whole numbers from {least} on"):
        config(**{name: least - 1})


@pytest.mark.parametrize(
    "name",
    [
        "direct_direct_weight",
        "reasoned_direct_weight",
        "direct_reasoned_weight",
        "reasoned_reasoned_weight",
        "rationale_weight",
        "gate_weight",
        "task_size_exponent",
    ],
)
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_weights_below_zero_are_refused(config, name, value):
    with pytest.raises(ValueError, match=f"{name}={value}; allowed: 0 or more"):
        config(**{name: value})


def test_something_has_to_be_embedded(config):
    names = ("direct_direct_weight", "reasoned_direct_weight", "direct_reasoned_weight", "reasoned_reasoned_weight")
    with pytest.raises(
        ValueError, match="Nothing would be embedded: direct_direct_weight, reasoned_direct_weight, di"
    ):
        config(**dict.fromkeys(names, 0.0))
    assert config(**{**dict.fromkeys(names, 0.0), "direct_direct_weight": 1.0}).path_weights[0, 0] == 1.0


def test_later_rounds_weigh_as_much_as_the_first(config):
    weights = {
        "direct_direct_weight": 1.0,
        "reasoned_direct_weight": 2.0,
        "direct_reasoned_weight": 3.0,
        "reasoned_reasoned_weight": 4.0,
    }
    assert config(**weights).path_weights == {(0, 0): 1.0, (1, 0): 2.0, (0, 1): 3.0, (1, 1): 4.0}
    assert config(**weights, max_reasoning_rounds=2).path_weights == {
        **{(0, 0): 1.0, (1, 0): 2.0, (2, 0): 2.0, (0, 1): 3.0, (0, 2): 3.0},
        **dict.fromkeys([(1, 1), (1, 2), (2, 1), (2, 2)], 4.0),
    }


def test_two_ways_to_draw_tasks_are_refused(config):
    with pytest.raises(ValueError, match="task_weights and task_size_exponent=0.5 both say how often tasks are drawn"):
        config(task_weights={"a": 1.0}, task_size_exponent=0.5)
    assert config(task_size_exponent=0.5).task_weights is None


@pytest.mark.parametrize("drawn", [{"task_weights": {"a": 1.0}}, {"task_size_exponent": 0.5}])
def test_pairs_change_places_within_epochs_alone(config, drawn):
    with pytest.raises(ValueError, match="separate_equal_pairs exchanges pairs within an epoch that has every pair o"):
        config(separate_equal_pairs=True, **drawn)


@pytest.mark.parametrize("name", ["mini_batch_size", "mini_batch_tokens"])
def test_what_is_run_at_once_turns_gradient_caching_on(config, name):
    assert config(**{name: 4}).caches_gradients and not config().caches_gradients
