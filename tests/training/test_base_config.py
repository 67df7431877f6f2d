from __future__ import annotations

import pytest

from mmemb_r1.cli import main
from mmemb_r1.training import base_config
from mmemb_r1.training.adaptive.config import AdaptiveGRPOConfig
from mmemb_r1.training.base_config import check_reports
from mmemb_r1.training.joint.config import JointConfig
from mmemb_r1.training.selection.evaluator_trainer import EvaluatorConfig

CONFIGS = (JointConfig, AdaptiveGRPOConfig, EvaluatorConfig)
ON_CPU = {"use_cpu": True, "bf16": False}


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_not_installed_is_told_before_any_work(config, tmp_path, monkeypatch):
    monkeypatch.setattr(base_config, "get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=r"report_to: wandb is not installed here. Install it \(pip install wandb\)"):
        config(output_dir=str(tmp_path), report_to=["tensorboard", "wandb"], **ON_CPU)
    with pytest.raises(ValueError, match="'trackoi' is not known; did you mean 'trackio'"):
        config(output_dir=str(tmp_path), report_to="trackoi", **ON_CPU)
    for names in ("none", [], "tensorboard", "all"):
        config(output_dir=str(tmp_path), report_to=names, **ON_CPU)


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("config", CONFIGS)
def test_without_a_gpu_the_way_to_train_on_a_cpu_is_told(config, tmp_path, monkeypatch):
    monkeypatch.setattr(base_config, "is_torch_bf16_gpu_available", lambda: False)
    for options in ({}, {"bf16": True}):
        with pytest.raises(ValueError, match="no GPU here that computes in bfloat16. .*add --cpu .*use_cpu=True"):
            config(output_dir=str(tmp_path), report_to=[], **options)
    assert config(output_dir=str(tmp_path), report_to=[], **ON_CPU).activation_checkpointing is True  # TRL's default


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("config", CONFIGS)
def test_transformers_of_either_age_is_told_of_activation_checkpointing(config, wanted, tmp_path):
    made = config(output_dir=str(tmp_path), report_to=[], activation_checkpointing=wanted, **ON_CPU)
    assert made.gradient_checkpointing is made.activation_checkpointing is wanted  # of 5.19, and of later ones


def test_a_command_says_so_before_it_looks_at_anything(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(base_config, "get_available_reporting_integrations", lambda: [])
    (tmp_path / "pairs.parquet").touch()
    files = ["--pairs", str(tmp_path / "pairs.parquet"), "--model", "no/model", "--output", str(tmp_path / "out")]
    for phase in ("joint", "adaptive"):
        assert main(["train", phase, *files, "--cpu", "--report_to", "wandb"]) == 2
        assert "report_to: wandb is not installed here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_of_packages():
    with pytest.raises(ValueError, match="pip install comet-ml"):
        check_reports(["comet_ml"])
