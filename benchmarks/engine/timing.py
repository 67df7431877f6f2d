"""Time several ways to do the same, in alternation, so that other load on the machine affects all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.engine.subject import Subject

Times = dict[str, list[float]]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def alternating(calls: Mapping[str, Callable[[], Any]], repeats: int, subject: Subject) -> Times:
    """
    Seconds of each call, `repeats` times, every second round in reverse order. What comes first isn't warmed up.

    Args:
        calls: name -> what is measured.
        repeats: rounds.
        subject: whose device has to finish its work before a time is read, and by which clock.
    """
    clock = CLOCKS[subject.clock]
    times: Times = {name: [] for name in calls}
    for number in range(repeats):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            _finish(subject.device)
            start = clock()
            calls[name]()
            _finish(subject.device)
            times[name].append(clock() - start)
    return times


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest ratio of the times of two calls, each within a round."""
    ratios = [one / other for one, other in zip(above, below, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}


def _finish(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
