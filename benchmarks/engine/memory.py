"""Measure the peak of memory above what was taken before."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine.subject import Subject

MIB = 2**20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def resident(what: str) -> int:
    """Bytes of memory of this process now (`VmRSS`), or at most since the last reset (`VmHWM`). Linux only."""
    found = re.search(rf"^{what}:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise ValueError(f"/proc/self/status has no line {what}.")
    return int(found[1]) * 1024


class Peaks:
    """
    The highest that memory is between one look and the next: of a CUDA device, or of this process.

    Attributes:
        noted: bytes, one per `note`.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.noted: list[int] = []
        if self.device.type != "cuda":
            libc = ctypes.CDLL("libc.so.6")
            # Freed memory is given back at once; otherwise the peak would show what the allocator keeps.
            libc.mallopt(M_MMAP_THRESHOLD, 2**16)
            libc.mallopt(M_TRIM_THRESHOLD, 2**16)
            libc.malloc_trim(0)
        self.begin()

    def begin(self) -> None:
        """The highest is the present one again."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def note(self) -> None:
        """Note the highest since the last look."""
        is_cuda = self.device.type == "cuda"
        self.noted.append(torch.cuda.max_memory_allocated(self.device) if is_cuda else resident("VmHWM"))
        self.begin()


def peak_above(call: Callable[[], Any], device: str) -> int:
    """Bytes that a call takes at most above what there is before."""
    gc.collect()
    peaks = Peaks(device)
    before = torch.cuda.memory_allocated(device) if peaks.device.type == "cuda" else resident("VmRSS")
    call()
    peaks.note()
    return peaks.noted[0] - before


def apart(function: Callable[..., Any], subject: Subject, *args: Any) -> Any:
    """
    `function(subject, *args)` in a process of its own, where no other call has left memory that can be used again. On
    a CUDA device, whose allocator counts exactly, in this one.
    """
    if torch.device(subject.device).type == "cuda":
        return function(subject, *args)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmemb_r1.sentence_transformers", "mmemb_r1.training.joint.trainer"])
    with ProcessPoolExecutor(1, mp_context=context) as processes:
        return processes.submit(function, subject, *args).result()
