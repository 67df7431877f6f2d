"""Log a training in one line per event: how far it is, and the figures that matter; bars only on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from mmemb_r1.progress import pace, shows_bars


class FigureLog(TrainerCallback):
    """
    Write one line on standard error for what a trainer logs.

    What `report_to` names gets everything that is logged, as does `trainer_state.json`.

    Args:
        figures: names of the figures of a line, in their order. Of logs that hold none of them, all is written.
    """

    def __init__(self, figures: Sequence[str]) -> None:
        super().__init__()
        self.figures = figures
        self.began, self.first_step = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began, self.first_step = time.monotonic(), state.global_step
        super().on_train_begin(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        seconds = time.monotonic() - self.began
        rate = (state.global_step - self.first_step) / seconds if seconds else None
        line = log_line(logs, self.figures, state.global_step, state.max_steps, rate)
        tqdm.write(line, file=sys.stderr)  # above the bars, if there are any


class FigureBars(FigureLog, ProgressCallback):
    """Show the bars of transformers as well, for standard error that is a terminal."""


def log_line(logs: Mapping[str, Any], figures: Sequence[str], step: int, steps: int, rate: float | None) -> str:
    """
    Put what a trainer logs into one line.

    Args:
        logs: name -> value; names of an evaluation begin with `eval_`.
        figures: names of those that matter, without that beginning.
        step: the number of the last step, of so many `steps`.
        rate: steps in a second, if it is known.

    >>> log_line({"loss": 0.25, "entropy": 2.0, "epoch": 1.5}, ["loss"], 10, 40, 2.0)
    'step: 10 of 40, 2/s, 0:00:15 left; loss 0.25'
    >>> log_line({"eval_loss": 0.5, "eval_runtime": 3.0}, ["loss"], 10, 40, None)
    'evaluated after step 10; loss 0.5'
    >>> log_line({"train_runtime": 20.0, "train_loss": 0.75}, ["loss"], 40, 40, 2.0)
    'trained for 0:00:20, 40 steps; loss 0.75'
    """
    if "train_runtime" in logs:
        prefix, text = "train_", f"trained for {timedelta(seconds=round(logs['train_runtime']))}, {step:,} steps"
    elif any(name.startswith("eval_") for name in logs):
        prefix, text = "eval_", f"evaluated after step {step:,}"
    else:
        prefix, text = "", pace("step", step, steps, rate)
    values = {name: logs[prefix + name] for name in figures if prefix + name in logs}
    if not values:
        values = {name: value for name, value in logs.items() if name not in ("epoch", "total_flos")}
    shown = (
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
    return f"{text}; {', '.join(shown)}"


def log_figures(trainer: Any, figures: Sequence[str]) -> None:
    """Let a trainer log with [`FigureLog`] in place of transformers' own bars and dictionaries; a notebook's stays."""
    found = [one for one in trainer.callback_handler.callbacks if type(one) in (PrinterCallback, ProgressCallback)]
    for one in found:
        trainer.remove_callback(one)
    if found:
        kind = FigureBars if shows_bars() and not trainer.args.disable_tqdm else FigureLog
        trainer.add_callback(kind(figures))
