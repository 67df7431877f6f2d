from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from mmemb_r1 import progress
from mmemb_r1.progress import progress_bar, step_of


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then_and_no_bar(clock, caplog, capsys):
    caplog.set_level(logging.INFO, "mmemb_r1.progress")
    for shown in (None, True, False):
        caplog.clear()
        with progress_bar(shown) as bar, step_of(bar, "tasks", 3), step_of(bar, "queries", 90) as advance:
            for second in range(1, 91):
                clock[0] += 1
                advance(1)
                assert len(caplog.messages) == second // 30
        assert caplog.messages[0].startswith("tasks: 0 of 3; queries: 30 of 90, 1/s, 0:01:00 left")
        assert "queries: 60 of 90" in caplog.messages[1] and "0:00:30 left" in caplog.messages[1]
        assert caplog.messages[2] == "tasks: 0 of 3"
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch, clock, caplog, capsys):
    caplog.set_level(logging.INFO, "mmemb_r1.progress")
    monkeypatch.setattr(progress, "shows_bars", lambda: True)
    with progress_bar() as bar, step_of(bar, "queries", 90) as advance:
        clock[0] += 60
        advance(90)
        bar.refresh()
        text = bar.get_renderable()
    assert text is not None and not caplog.messages
    with progress_bar(False) as bar:
        assert bar.disable


@pytest.mark.parametrize("shown", [True, None])
def test_encode_shows_its_progress_as_everything_else(shown, thinking, monkeypatch, caplog, capsys):
    caplog.set_level(logging.INFO, "mmemb_r1.progress")
    monkeypatch.setattr(progress, "PERIOD", 0)
    thinking().encode(["Lima", "Quito", "Bern"], reasoning="never", batch_size=1, show_progress_bar=shown)
    assert bool(caplog.messages) is (shown is True)
    assert all("Inputs: " in message and " of 3" in message for message in caplog.messages)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_command_into_a_log_shows_no_bars_of_libraries(tiny_checkpoint, tmp_path):
    """transformers shows a bar while it loads weights, datasets while it reads and writes tables."""
    (tmp_path / "in.jsonl").write_text('"Lima"\n', encoding="utf-8")
    code = (
        "import sys\nfrom mmemb_r1.cli import main\n"
        f"status = main(['encode', '--model', {str(tiny_checkpoint)!r}, '--input', {str(tmp_path / 'in.jsonl')!r},"
        f" '--output', {str(tmp_path / 'out.npy')!r}, '--device', 'cpu'])\n"
        "import datasets\n"
        f"datasets.Dataset.from_dict({{'a': [1]}}).to_parquet({str(tmp_path / 'out.parquet')!r})\n"
        "sys.exit(status)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stderr.splitlines() == [f"1 embeddings in {tmp_path / 'out.npy'}, 0 of them reasoned"]
    assert child.stdout == ""
