from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from sentence_transformers.sentence_transformer.modules import Dense

from mmemb_r1.modeling import configuration_mmemb_r1, modeling_mmemb_r1, sentence_mmemb_r1
from mmemb_r1.modeling.files_mmemb_r1 import as_new, copy_content, remove_read_only


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_as_new(tmp_path, umask, file_mode, folder_mode):
    before = os.umask(umask)
    try:
        weights, folder = tmp_path / "a.safetensors", tmp_path / "folder"
        save_file({"a": np.zeros(1)}, weights)
        weights.chmod(0o604)
        folder.mkdir(mode=0o701)
        as_new([weights, folder])
        assert (mode(weights), mode(folder)) == (file_mode, folder_mode)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "folder"]
        as_new([])
    finally:
        os.umask(before)


def test_copies_have_the_content_and_not_the_permissions(tmp_path, new_modes):
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    for path in (source / "a", source / "inner" / "b"):
        path.write_text(path.name)
        path.chmod(0o400)
    (source / "inner").chmod(0o500)
    target = tmp_path / "new" / "target"
    (target / "inner").mkdir(parents=True)
    (target / "inner" / "b").write_text("old")
    (target / "inner" / "b").chmod(0o400)
    copy_content(source, target)
    assert {path.name: path.read_text() for path in target.rglob("*") if path.is_file()} == {"a": "a", "b": "b"}
    new_modes(target)
    copy_content(target / "a", target / "a")  # nothing is lost
    assert (target / "a").read_text() == "a"


def test_files_that_may_only_be_read_make_way(tmp_path, monkeypatch):
    kept, removed = tmp_path / "kept", tmp_path / "removed"
    for path in (kept, removed):
        path.touch()
    removed.chmod(0o400)
    monkeypatch.setattr(os, "access", lambda path, how: bool(mode(Path(path)) & 0o200))  # as if not by root
    remove_read_only([kept, removed])
    assert kept.exists() and not removed.exists()


def test_a_model_of_an_installation_that_may_only_be_read_is_saved_for_all_who_read_new_files(
    thinking, tmp_path, monkeypatch, new_modes
):
    installed = tmp_path / "installed"
    shutil.copytree(Path(modeling_mmemb_r1.__file__).parent, installed, ignore=shutil.ignore_patterns("__pycache__"))
    for path in installed.iterdir():
        path.chmod(0o444)
    for module in (configuration_mmemb_r1, modeling_mmemb_r1, sentence_mmemb_r1):
        monkeypatch.setattr(module, "__file__", str(installed / Path(module.__file__).name))
    model, folder = thinking(), tmp_path / "model"
    model.append(Dense(32, 8, activation_function=torch.nn.Identity()))
    for _ in range(2):
        model.save_pretrained(str(folder))
        new_modes(folder)
    assert len(list(folder.rglob("*.safetensors"))) == 2
    assert {path.name for path in installed.glob("*_mmemb_r1.py")} == {path.name for path in folder.glob("*.py")}
