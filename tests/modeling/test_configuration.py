"""The configuration knows every number, and refuses those that can't be."""

from __future__ import annotations

import dataclasses
import re

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
        ({"embedding_dim": 64, "truncate_dim": 0}, "64 dimensions can't be truncated to 0"),
        ({"embedding_dim": 64, "matryoshka_dims": [32, 128]}, "64 dimensions can't be truncated to 128"),
    ],
)
def test_values_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        MMEmbR1Config(**values)


def test_every_field_is_documented_with_its_default():
    documented = dict(
        re.findall(
            r"^        (\w+) \(`[^)]*?(?:, \*optional\*)?(?:, defaults to `?([^`)]+?)`?)?\):$",
            MMEmbR1Config.__doc__,
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
