from __future__ import annotations

import pytest
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState

from mmemb_r1.training.logs import FigureLog, log_figures, log_line


class Handler:
    def __init__(self, callbacks):
        self.callbacks = callbacks


class Trainer:
    def __init__(self, disable_tqdm, callbacks):
        self.args = type("Args", (), {"disable_tqdm": disable_tqdm})()
        self.callback_handler = Handler(callbacks)

    def remove_callback(self, one):
        self.callback_handler.callbacks.remove(one)

    def add_callback(self, one):
        self.callback_handler.callbacks.append(one)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("quiet", [True, False])
def test_bars_are_for_terminals(terminal, quiet, monkeypatch, capsys):
    monkeypatch.setattr("mmemb_r1.training.logs.shows_bars", lambda: terminal)
    own = TrainerCallback()
    trainer = Trainer(quiet, [own, PrinterCallback() if quiet else ProgressCallback()])
    log_figures(trainer, ("loss",))
    first, log = trainer.callback_handler.callbacks
    assert first is own and isinstance(log, FigureLog)

    state = TrainerState(max_steps=4, is_world_process_zero=True)
    log.on_train_begin(None, state, None)
    for step in range(1, 5):
        state.global_step = step
        log.on_step_end(None, state, None)
        log.on_prediction_step(None, state, None, eval_dataloader=[1])
        log.on_evaluate(None, state, None)
    log.on_log(None, state, None, logs={"loss": 0.5, "entropy": 1.0, "epoch": 1.0})
    log.on_train_end(None, state, None)
    shown = capsys.readouterr()
    assert ("it/s" in shown.err) is (terminal and not quiet)
    (line,) = [line for line in shown.err.splitlines() if "loss" in line]
    assert "step: 4 of 4" in line and line.endswith("; loss 0.5") and "entropy" not in line
    assert shown.out == ""


def test_the_rate_is_that_since_the_run_went_on(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    log, state = FigureLog(("loss",)), TrainerState(max_steps=1000, global_step=900, is_world_process_zero=True)
    log.on_train_begin(None, state, None)
    now[0], state.global_step = 5.0, 910
    log.on_log(None, state, None, logs={"loss": 1.0})
    assert capsys.readouterr().err == "step: 910 of 1,000, 2/s, 0:00:45 left; loss 1\n"
    state.is_world_process_zero = False
    log.on_log(None, state, None, logs={"loss": 1.0})
    assert capsys.readouterr().err == ""


def test_a_log_without_the_figures_is_written_whole():
    assert log_line({"own": 1.5, "epoch": 1.0}, ("loss",), 1, 2, None) == "step: 1 of 2; own 1.5"
