"""A cache of embeddings that tells what it had, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from mmemb_r1.embedding_cache import EmbeddingCache


class WatchedCache:
    """
    A cache that tells how many were `asked` for, how many of these were `missing`, and the `seconds` it took itself.

    Args:
        cache: the one that is asked.
    """

    def __init__(self, cache: EmbeddingCache | None) -> None:
        self.cache, self.seconds = cache, 0.0
        self.asked = self.missing = 0

    def get(self, keys: Sequence[bytes]) -> list[dict[str, Tensor] | None]:
        rows = self._timed("get", keys)
        self.asked += len(rows)
        self.missing += sum(row is None for row in rows)
        return rows

    def put(self, rows: Mapping[bytes, Mapping[str, Tensor]]) -> None:
        self._timed("put", rows)

    def _timed(self, method: str, argument: Any) -> Any:
        start = time.perf_counter()
        result = getattr(self.cache, method)(argument)
        self.seconds += time.perf_counter() - start
        return result
