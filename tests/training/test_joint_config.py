from __future__ import annotations

import dataclasses
import re

import pytest
from trl.trainer.base_config import _BaseConfig

from mmemb_r1.training import JointConfig


def test_documented_defaults_are_the_defaults():
    documented = dict(re.findall(r"(\w+) \(`[^`]+`, \*optional\*, defaults to `([^`]+)`\)", JointConfig.__doc__))
    fields = {field.name: field.default for field in dataclasses.fields(JointConfig)}
    inherited = {field.name for field in dataclasses.fields(_BaseConfig)}
    assert {name: str(fields[name]) for name in documented} == documented
    undocumented = {name for name in fields if name not in inherited and f"{name} (" not in JointConfig.__doc__}
    assert not undocumented


def test_the_sub_batch_has_to_divide_the_batch(tmp_path):
    with pytest.raises(ValueError, match="sub_batch_size=3 has to divide per_device_train_batch_size=8"):
        JointConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=8, sub_batch_size=3, use_cpu=True, bf16=False
        )


def test_the_temperature_has_to_be_positive(tmp_path):
    with pytest.raises(ValueError, match="temperature=0 has to be positive"):
        JointConfig(output_dir=str(tmp_path), temperature=0, sub_batch_size=1, use_cpu=True, bf16=False)
