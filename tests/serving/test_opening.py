"""Only a whole checkpoint is served, and the command says what it needs."""

from __future__ import annotations

import builtins
import shutil

import numpy as np
import pytest

from mmemb_r1.cli import main
from mmemb_r1.serving.opening import open_model
from mmemb_r1.serving.settings import KEYS, api_keys


@pytest.fixture
def copied(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "copied")


def test_a_checkpoint_is_opened_with_fields_of_the_config(tiny_checkpoint):
    model = open_model(str(tiny_checkpoint), device="cpu", max_image_pixels=100, max_text_tokens=None)
    assert model[0].model.config.max_image_pixels == 100
    assert model.encode("a").shape == (32,)


def test_a_checkpoint_without_a_card_is_served(copied):
    (copied / "README.md").unlink()
    open_model(str(copied), device="cpu")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda folder: (folder / "optimizer.pt").write_bytes(b""), "optimizer.pt is not a file of a checkpoint"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "model.safetensors can't be read"),
        (lambda folder: (folder / "decoding_mmemb_r1.py").unlink(), "decoding_mmemb_r1.py, which is not there"),
    ],
)
def test_what_is_not_whole_is_not_served(copied, damage, told, capsys):
    damage(copied)
    assert main(["serve", str(copied), "--device", "cpu", "--port", "0"]) == 2
    error = capsys.readouterr().err
    assert "is not served, because it is no whole checkpoint" in error and told in error


def test_vectors_that_are_no_numbers_are_not_served(thinking):
    import torch

    from mmemb_r1.serving.running import make_server
    from mmemb_r1.serving.settings import ServerSettings

    model = thinking()
    with torch.no_grad():
        model[0].model.vlm.get_input_embeddings().weight.fill_(np.nan)
    with pytest.raises(ValueError, match="its vectors are no numbers"):
        make_server(model, "m", ServerSettings(), port=0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serve", "nowhere"], "no folder nowhere"),
        (["serve", "nowhere", "--max-inputs", "0"], "max_inputs=0 has to be more than 0"),
    ],
)
def test_wrong_arguments_are_told(arguments, told, capsys):
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "prometheus_client"])
def test_what_has_to_be_installed_is_told(missing, monkeypatch, capsys):
    real = builtins.__import__

    def importing(name, *args, **kwargs):
        if name == missing:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
    assert main(["serve", "nowhere"]) == 2
    assert "pip install 'mmemb-r1[serve]'" in capsys.readouterr().err


def test_keys_come_from_the_environment(monkeypatch):
    monkeypatch.delenv(KEYS, raising=False)
    assert api_keys() == []
    monkeypatch.setenv(KEYS, " one, two ,")
    assert api_keys() == ["one", "two"]


def test_the_command_serves_as_it_is_told(tiny_checkpoint, monkeypatch):
    import mmemb_r1.serving.running as running

    made = []
    monkeypatch.setattr(running, "serve", made.append)
    monkeypatch.setenv(KEYS, "one")
    options = ["--name", "mine", "--port", "0", "--batch-size", "4", "--max-inputs", "7", "--allow-remote-media"]
    assert main(["serve", str(tiny_checkpoint), "--device", "cpu", "--max-image-pixels", "4096", *options]) == 0
    (server,) = made
    service_settings = server.config.app.user_middleware[0].kwargs
    assert service_settings["keys"] == ["one"] and service_settings["settings"].max_inputs == 7
    scheduler = server.config.app.state.scheduler
    assert scheduler.batch_size == 4 and scheduler.executor.media.allow_remote
    assert scheduler.executor.decode_batch_size == 16
    assert scheduler.executor.media.max_image_pixels == 4096
    assert server.config.host == "127.0.0.1"
    scheduler.close(20)
