"""The order in which the adaptive phase visits queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from trl.trainer.utils import RepeatSampler


class EpochSampler(RepeatSampler):
    """
    TRL's sampler, whose order in an epoch follows from the seed and the epoch's number.

    TRL's own goes on drawing from one generator, so that a run that is resumed in its second epoch sees the first
    one's order again.

    Args:
        epoch: tells the number of the epoch that begins.
        **kwargs: those of [`~trl.trainer.utils.RepeatSampler`].
    """

    def __init__(self, *, epoch: Callable[[], int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + self._epoch())
        return super().__iter__()
