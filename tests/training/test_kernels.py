"""Kernels of Liger go into the backbone, or the training says why not. Liger itself needs a GPU: here it is played."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from mmemb_r1.training import kernels
from mmemb_r1.training.kernels import apply_liger_kernels

GPU = torch.device("cuda")


@pytest.fixture
def applied(monkeypatch):
    """What the kernels are applied to, with which options, by a Liger that knows one backbone."""
    calls = []
    package, patch = ModuleType("liger_kernel.transformers"), ModuleType("liger_kernel.transformers.monkey_patch")
    package._apply_liger_kernel_to_instance = lambda model, **options: calls.append((model, options))
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen3_vl": None, "llama": None}
    for module in (ModuleType("liger_kernel"), package, patch):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(kernels, "is_liger_kernel_available", lambda: True)
    return calls


def test_they_go_into_the_backbone_without_its_loss(applied, model):
    apply_liger_kernels(model.vlm, {"rope": False}, GPU)
    assert applied == [(model.vlm, {"cross_entropy": False, "fused_linear_cross_entropy": False, "rope": False})]


def test_the_joint_phase_asks_for_them(applied, make_trainer, model, rows, monkeypatch):
    monkeypatch.setattr("mmemb_r1.training.joint.trainer.apply_liger_kernels", lambda *given: applied.append(given))
    make_trainer(model, rows)
    assert applied == []
    make_trainer(model, rows, use_liger_kernel=True, liger_kernel_config={"rope": True})
    assert applied == [(model.vlm, {"rope": True}, torch.device("cpu"))]


def test_where_they_cant_run_that_is_told(applied, model, make_trainer, rows):
    with pytest.raises(ValueError, match="Liger's kernels run on GPUs, this training on a CPU; leave it out"):
        make_trainer(model, rows, use_liger_kernel=True)
    with pytest.raises(ValueError, match="cross_entropy has no effect, as the backbone's own loss is not used"):
        apply_liger_kernels(model.vlm, {"cross_entropy": True}, GPU)
    model.vlm.config.model_type = "smolvlm"
    with pytest.raises(ValueError, match="no kernels for a smolvlm backbone; leave it out. It has some for: llama"):
        apply_liger_kernels(model.vlm, None, GPU)
    assert applied == []


def test_where_they_are_not_installed_that_is_told(monkeypatch, make_trainer, model, rows):
    monkeypatch.setattr(kernels, "is_liger_kernel_available", lambda: False)
    with pytest.raises(ValueError, match="Liger is not installed here; pip install liger-kernel, on a machine wi"):
        make_trainer(model, rows, use_liger_kernel=True)
