"""Look up scores by what they depend on, in shards that were written for other states of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

_COLUMN = "score_key"
_OPEN = 64  # shards that are kept in memory; where tables keep their order, each is read once


class KeptScores:
    """
    Finds scores by their keys. It holds 24 bytes for each score, and few shards at a time.

    Args:
        shards: Parquet files with the column `score_key` (16 bytes, or null) and others.
        columns: what makes a score, `score_key` among them.
    """

    def __init__(self, shards: Sequence[Path], columns: Sequence[str]) -> None:
        self._shards, self._columns = list(shards), list(columns)
        heads, files, rows = [], [], []
        for number, shard in enumerate(self._shards):
            keys = pq.read_table(shard, columns=[_COLUMN])[_COLUMN]
            there = np.flatnonzero(keys.is_valid().to_numpy())
            heads.append(_heads(keys.drop_null().to_pylist()))
            files.append(np.full(len(there), number, dtype=np.int64))
            rows.append(there)
        joined = np.concatenate([*heads, np.empty(0, np.uint64)])
        order = joined.argsort(kind="stable")
        self._heads = joined[order]
        self._files, self._rows = (np.concatenate([*part, np.empty(0, np.int64)])[order] for part in (files, rows))
        self._read = lru_cache(_OPEN)(self._read_shard)

    def find(self, keys: Sequence[bytes]) -> dict[bytes, dict[str, Any]]:
        """Look up the columns of scores: key -> column -> value, for those keys that are there."""
        if not len(self._heads):
            return {}
        found = {}
        places = self._heads.searchsorted(_heads(keys))
        for key, place in zip(keys, places.tolist(), strict=True):
            if place < len(self._heads) and self._heads[place] == _heads([key])[0]:
                row = self._read(int(self._files[place])).slice(int(self._rows[place]), 1).to_pylist()[0]
                if row[_COLUMN] == key:  # heads of two keys may be the same
                    found[key] = row
        return found

    def _read_shard(self, number: int) -> pa.Table:
        return pq.read_table(self._shards[number], columns=self._columns)


def _heads(keys: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    """Return the first eight bytes of each key as a number."""
    return np.frombuffer(b"".join(key[:8] for key in keys), dtype=np.uint64)
