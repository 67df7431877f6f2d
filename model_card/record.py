"""Read from the record of a training which phases made a model, and what they say of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmemb_r1.model_card.validation import is_repo_id

BASE_MODEL = "base model"  # a fact of the phase `INIT`
INIT = "init"
GATE_PHASES = ("gate", "adaptive")  # beginnings of the names of those that train the gate whatever their settings


def phases(training: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """List what is recorded of the phases that made a model, in order; none if nothing is recorded."""
    return [*training.get("before", []), training] if training else []


def knows_the_beginning(training: Mapping[str, Any]) -> bool:
    """Tell whether the record goes back to the vision-language model that everything began with."""
    return any(phase.get("phase") == INIT for phase in phases(training))


def recorded_base_model(training: Mapping[str, Any]) -> str | None:
    """Find the Hub id of the vision-language model that everything began with, if it is recorded."""
    named = [phase[BASE_MODEL] for phase in phases(training) if isinstance(phase.get(BASE_MODEL), str)]
    return next(filter(is_repo_id, named), None)


def gate_is_trained(training: Mapping[str, Any]) -> bool | None:
    """
    Tell whether a phase trained the gate; `None` if that is not recorded.

    >>> gate_is_trained({"phase": "gate"}), gate_is_trained({"phase": "joint", "gate": "not trained"})
    (True, None)
    >>> gate_is_trained({"phase": "joint", "gate": "not trained", "before": [{"phase": "init"}]})
    False
    """
    known = [_trains_gate(phase) for phase in phases(training)]
    if any(known):
        return True
    return None if None in known or not knows_the_beginning(training) else False


def _trains_gate(phase: Mapping[str, Any]) -> bool | None:
    name = str(phase.get("phase", ""))
    if name.startswith(GATE_PHASES):
        return True
    return {"trained": True, "not trained": False}.get(str(phase.get("gate"))) if name != INIT else False
