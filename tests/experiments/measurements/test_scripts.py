"""Every measurement is a script that runs: what it imports is there, and it says what it is for."""

from __future__ import annotations

from importlib import import_module

import pytest

SCRIPTS = ("adaptive_depth", "adaptive_phase", "gate_limits", "joint_phase", "selection_quality")


@pytest.mark.parametrize("name", SCRIPTS)
def test_its_help_names_its_command(name, monkeypatch, capsys):
    module = import_module(f"experiments.measurements.{name}")
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    assert f"python -m experiments.measurements.{name}" in capsys.readouterr().out
