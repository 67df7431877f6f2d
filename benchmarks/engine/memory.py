"""The highest that memory rises, above what is taken before."""

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

from .subject import Subject

MIB = 2**20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def resident(what: str) -> int:
    """Bytes of memory of this process now (`VmRSS`), or at most since the last reset (`VmHWM`). Linux only."""
    found = re.search(rf"^{what}:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise ValueError(f"/proc/self/status does not tell {what}.")
    return int(found[1]) * 1024


def peak_above(call: Callable[[], Any], device: str) -> int:
    """Bytes that a call takes at most above what there is before."""
    before, highest = peak(call, device)
    return highest - before


def peak(call: Callable[[], Any], device: str) -> tuple[int, int]:
    """Bytes before a call, and at most during it: of a CUDA device's memory, or of this process."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return before, torch.cuda.max_memory_allocated(device)
    libc = ctypes.CDLL("libc.so.6")
    # what is freed is given back at once: otherwise the peak tells what the allocator likes to keep
    libc.mallopt(M_MMAP_THRESHOLD, 2**16)
    libc.mallopt(M_TRIM_THRESHOLD, 2**16)
    libc.malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the highest is the present one again
    call()
    return before, resident("VmHWM")


def apart(function: Callable[..., Any], subject: Subject, *args: Any) -> Any:
    """
    `function(subject, *args)` in a process of its own, where no other call has left memory that can be used again. On
    a CUDA device, whose allocator counts exactly, in this one.
    """
    if torch.device(subject.device).type == "cuda":
        return function(subject, *args)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmemb_r1.sentence_transformer", "mmemb_r1.training.joint_trainer"])
    with ProcessPoolExecutor(1, mp_context=context) as processes:
        return processes.submit(function, subject, *args).result()
