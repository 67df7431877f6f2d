"""The configuration knows every number, and refuses those that can't be."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re

import numpy as np
import pytest

from mmemb_r1 import MMEmbR1Config


def test_defaults_without_a_backbone():
    config = MMEmbR1Config()
    assert config.vlm_config.model_type == "qwen3_vl"
    assert config.hidden_size == config.vlm_config.get_text_config().hidden_size
    assert (config.pooling, config.reasoning, config.gate_threshold) == ("last", "auto", 0.5)
    assert config.suppressed_token_ids == config.matryoshka_dims == []


def test_round_trip(tmp_path):
    config = MMEmbR1Config(
        pooling="mean", embedding_dim=64, truncate_dim=16, matryoshka_dims=[16, 32], gate_hidden_size=3
    )
    config.save_pretrained(tmp_path)
    loaded = MMEmbR1Config.from_pretrained(tmp_path)
    ignored = {"transformers_version", "_name_or_path"}
    assert {k: v for k, v in loaded.to_dict().items() if k not in ignored} == {
        k: v for k, v in config.to_dict().items() if k not in ignored
    }
    assert type(loaded.vlm_config) is type(config.vlm_config)


def test_lists_are_not_shared():
    one, other = MMEmbR1Config(), MMEmbR1Config()
    one.suppressed_token_ids.append(1)
    assert other.suppressed_token_ids == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pooling": "max"}, "pooling='max' is not known; allowed: last, mean, attention"),
        ({"reasoning": "maybe"}, "reasoning='maybe' is not known; allowed: auto, always, never"),
        ({"embedding_dim": 64, "truncate_dim": 65}, "64 dimensions can't be truncated to 65"),
        ({"embedding_dim": 64, "truncate_dim": 0}, "truncate_dim=0 .* has to be one whole number of at least 1"),
        ({"embedding_dim": 64, "matryoshka_dims": [32, 128]}, "64 dimensions can't be truncated to 128"),
        ({"truncate_dim": -3}, "truncate_dim=-3 "),
        ({"truncate_dim": True}, "truncate_dim=True "),
        ({"max_text_tokens": 0}, "max_text_tokens=0 .* has to be one whole number of at least 1"),
        ({"max_text_tokens": "8"}, "max_text_tokens='8' "),
        ({"num_video_frames": 1.5}, "num_video_frames=1.5 "),
        ({"normalize": "no"}, "normalize='no' .* has to be True or False"),
        ({"gate_threshold": float("nan")}, "gate_threshold=nan .* has to be a number from 0 to 1"),
        ({"gate_init_bias": float("inf")}, "gate_init_bias=inf "),
        ({"suppressed_token_ids": "12"}, "suppressed_token_ids='12' .* has to be a list of whole numbers"),
        ({"matryoshka_dims": [8, 0]}, "matryoshka_dims=.* has to be a list of whole numbers of at least 1"),
        ({"embedding_dim": 10**9}, "embedding_dim=1000000000 .* from 1 to 65536"),
        ({"max_reasoning_tokens": 10**9}, "max_reasoning_tokens=1000000000 is more than the model's context"),
        ({"max_text_token": 8}, "has no field 'max_text_token'; did you mean 'max_text_tokens'"),
    ],
)
def test_values_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        MMEmbR1Config(**values)
    config = MMEmbR1Config(**({"embedding_dim": 64} if values.get("embedding_dim") == 64 else {}))
    if "max_reasoning_tokens" in values:
        return  # what depends on the backbone is looked at when it is used
    with pytest.raises(ValueError, match=message):  # the same when they are set later
        for name, value in values.items():
            setattr(config, name, value)


def test_what_is_given_at_loading_is_checked(tmp_path):
    MMEmbR1Config().save_pretrained(tmp_path)
    for name, value in (("truncate_dim", 10**6), ("max_text_tokens", 0), ("pooling", "cls"), ("max_text_token", 9)):
        with pytest.raises(ValueError, match=f"{name}|{value}"):
            MMEmbR1Config.from_pretrained(tmp_path, **{name: value})


def test_a_value_that_is_refused_changes_nothing():
    config = MMEmbR1Config(truncate_dim=np.int64(8), gate_threshold=np.float32(0.5))
    assert (type(config.truncate_dim), type(config.gate_threshold)) == (int, float)  # JSON knows no others
    with pytest.raises(ValueError, match="can't be truncated to 1000000"):
        config.truncate_dim = 10**6
    assert config.truncate_dim == 8
    config.anything = 3  # transformers and others keep values of their own in it


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_type": "qwen3_vl", "text_config": {}}, "type 'qwen3_vl'.*mmemb-r1 init --vlm"),
        ({"model_type": "mmemb_r1", "vlm_config": None}, "has no vlm_config"),
        ({"model_type": "mmemb_r1"}, "has no vlm_config"),
    ],
)
def test_a_config_without_a_backbone_is_not_loaded(content, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        MMEmbR1Config.from_pretrained(tmp_path)


def test_every_field_is_documented_with_its_default():
    documented = dict(
        re.findall(
            r"^    (\w+) \(`[^)]*?(?:, \*optional\*)?(?:, defaults to `?([^`)]+?)`?)?\):$",
            inspect.getdoc(MMEmbR1Config),  # without the indentation, which Python 3.13 takes off by itself
            re.M,
        )
    )
    inherited = {field.name for field in dataclasses.fields(MMEmbR1Config.__mro__[1])}
    own = {field.name: field.default for field in dataclasses.fields(MMEmbR1Config) if field.name not in inherited}
    own.pop("tie_word_embeddings", None)  # follows from the backbone's
    assert set(documented) == set(own)
    for name, default in own.items():
        if default is not None:
            assert documented[name].strip('"') == str(default)


def test_image_token_is_the_backbones(tiny):
    config = tiny.model.config
    assert config.image_token_id == tiny.model.vlm.config.image_token_id
    assert config.tie_word_embeddings
