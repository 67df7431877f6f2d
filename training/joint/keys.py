"""Compare inputs of the joint phase by numbers that stand for their content."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from mmemb_r1.content import content_key
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.training.tables import StoredInputs


def key_number(key: bytes) -> int:
    """Shorten a [`~mmemb_r1.content.content_key`] to a signed 64-bit integer, by which tensors compare inputs."""
    return int.from_bytes(key[-8:], "little", signed=True)


def content_keys(
    table: Dataset, media: MediaOptions, columns: Sequence[str] = ("query", "target")
) -> npt.NDArray[np.int64]:
    """
    Look at every input of a pairs table, pictures as they are stored.

    Returns:
        `(N, columns)` int64, equal in a column where inputs are. What can't be read is equal to nothing.
    """
    return np.stack(
        [np.array([key_number(content_key(value, media)) for value in StoredInputs(table, name)]) for name in columns],
        axis=1,
    )
