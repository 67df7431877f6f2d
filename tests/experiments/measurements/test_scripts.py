"""Every measurement is a script that runs: what it imports is there, and it says what it is for."""

from __future__ import annotations

from importlib import import_module

import pytest

MEASUREMENTS = (
    "adaptive_depth",
    "adaptive_phase",
    "bare_machine",
    "gate_limits",
    "joint_phase",
    "modes_of_seeds",
    "selection_quality",
    "thinker",
)
SCRIPTS = (*(f"measurements.{name}" for name in MEASUREMENTS), "recipes.fits", "recipes.night")


@pytest.mark.parametrize("name", SCRIPTS)
def test_its_help_names_its_command(name, monkeypatch, capsys):
    module = import_module(f"experiments.{name}")
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    assert f"python -m experiments.{name}" in capsys.readouterr().out
