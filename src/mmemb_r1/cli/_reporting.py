"""Set up what a command tells on standard error while it works: bars on a terminal, a line per event in a log."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mmemb_r1.progress import shows_bars

NO_BARS = ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS")  # transformers reads the second


@contextmanager
def reporting() -> Iterator[None]:
    """
    Let the package log on standard error for as long as the block lasts.

    Where that is no terminal, it also logs how far it is, and the libraries show no bars, unless the environment says
    otherwise; they read it when they are imported, which is later.
    """
    bars = shows_bars()
    if not bars:
        for name in NO_BARS:
            os.environ.setdefault(name, "1")
    package, own = logging.getLogger("mmemb_r1"), []
    level = package.level
    if not logging.getLogger().handlers:  # else somebody set logging up before
        own.append(logging.StreamHandler())
        package.addHandler(own[0])  # not to all loggers: the libraries have handlers of their own
    if not bars:
        package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.setLevel(level)
        for handler in own:
            package.removeHandler(handler)
