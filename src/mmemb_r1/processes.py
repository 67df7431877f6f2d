"""Start processes that work at the same time, each with its share of the cores, and check what they are handed."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from mmemb_r1.modeling.inputs_mmemb_r1 import InputError


@contextmanager
def process_pool(jobs: int, threads: int, log: Path) -> Iterator[ProcessPoolExecutor]:
    """
    Start processes for as long as the block lasts. If an error ends it, what waits is not begun.

    Args:
        jobs: processes at a time.
        threads: of each.
        log: gets what they print.
    """
    given = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that are started now
    try:
        with ProcessPoolExecutor(
            jobs, get_context("spawn"), initializer=_prepare, initargs=(os.getpid(), threads, log)
        ) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        if given is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = given


def _prepare(parent: int, threads: int, log: Path) -> None:
    """Set a process up."""
    end_with(parent)
    sys.stdout = sys.stderr = log.open("a", buffering=1, encoding="utf-8")  # for as long as it lives
    import datasets
    import torch

    datasets.disable_progress_bars()
    torch.set_num_threads(threads)


def end_with(parent: int) -> None:
    """Let this process end with the one that started it, however that ends: a run that goes on needs no rival."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def check_inputs_travel(inputs: Sequence[Any]) -> None:
    """
    Refuse inputs that can't be sent to another process: a queue drops them, and whoever waits for results does so for
    ever.

    Raises:
        InputError: naming the first of them.
    """
    for index, value in enumerate(inputs):
        if isinstance(value, str):
            continue
        try:
            ForkingPickler.dumps(value)  # as a queue does
        except Exception as error:  # whatever an object's own code raises
            reason = (
                f"it can't be handed to another process ({error}). Pass a file as a path or as bytes, and a video as "
                "its file or frames."
            )
            raise InputError(index, reason, value) from error
