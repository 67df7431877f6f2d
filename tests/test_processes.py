"""Processes that work at the same time. What they run is of the standard library: it needs no imports."""

from __future__ import annotations

import operator
import os

import pytest

from mmemb_r1.processes import process_pool


@pytest.mark.slow
def test_a_pool_gives_each_process_its_threads_and_leaves_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    log = tmp_path / "log"
    with process_pool(2, 1, log) as pool:
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"
        pool.submit(print, "said in a process").result()
        with pytest.raises(ZeroDivisionError):
            pool.submit(operator.truediv, 1, 0).result()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "said in a process" in log.read_text(encoding="utf-8")


def test_an_error_in_the_block_begins_nothing_more(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(OSError, match="no space left"), process_pool(1, 1, tmp_path / "log"):
        raise OSError("no space left")
    assert "OMP_NUM_THREADS" not in os.environ
