"""Candidates that several tasks share are embedded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.tasks import RetrievalTask

MOST_BYTES = 2**30


class CandidateVectors:
    """
    Vectors of candidates, those that were used last.

    Args:
        most_bytes: of all that are kept; those of the last task are kept whatever their size. Default: 1 GiB.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._held: dict[int, tuple[Any, str | None, npt.NDArray[np.float32]]] = {}

    def of(
        self, task: RetrievalTask, embed: Callable[[RetrievalTask], npt.NDArray[np.float32]]
    ) -> npt.NDArray[np.float32]:
        """
        Vectors `(C, D)` of a task's candidates.

        Args:
            task: one that holds the same sequence of candidates, and has the same prompt for them, as another shares
                its vectors.
            embed: asked if they are not there.
        """
        held = self._held.pop(id(task.candidates), None)
        if held is None or held[1] != task.candidate_prompt:
            held = (task.candidates, task.candidate_prompt, embed(task))
        self._held[id(task.candidates)] = held  # the last one used comes last; no other object gets its id
        while len(self._held) > 1 and sum(one[2].nbytes for one in self._held.values()) > self.most_bytes:
            self._held.pop(next(iter(self._held)))
        return held[2]
