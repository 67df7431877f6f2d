"""Stopping a run whose gate has stopped to decide."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)
LEAST = 0.01


class StopOnCollapse(TrainerCallback):
    """
    Stops training when the gate thinks on almost nothing, or on almost everything, in several logs in a row.

    Args:
        patience: how many.
    """

    def __init__(self, patience: int) -> None:
        self.patience, self.seen = patience, 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        share = (logs or {}).get("gate/thinks")
        if share is None:
            return
        self.seen = self.seen + 1 if min(share, 1 - share) < LEAST else 0
        if self.seen >= self.patience:
            logger.warning(
                "The gate thinks on %.1f %% of the queries since %d logs: training stops. Change cost_weight, or "
                "start from a gate that was warm-started.",
                100 * share,
                self.seen,
            )
            control.should_training_stop = True
