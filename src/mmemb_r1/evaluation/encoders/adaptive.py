"""An adaptive model, as the evaluation asks it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mmemb_r1.evaluation.encoders.encoder import Embedded, check_count, saved_prompts, settings_beside
from mmemb_r1.evaluation.encoders.watched_cache import WatchedCache
from mmemb_r1.evaluation.settings import OPTIONS, Settings

if TYPE_CHECKING:
    from mmemb_r1.embedding_cache import EmbeddingCache


class Explains(Protocol):
    """What is asked of an adaptive model: [`MMEmbR1.explain`]."""

    def explain(self, inputs: list[Any], *, reasoning: str, batch_size: int, show_progress_bar: bool) -> Any: ...


class AdaptiveEncoder:
    """A model with the `explain` of [`MMEmbR1`]."""

    def __init__(self, model: Any, settings: Settings, cache: EmbeddingCache | None = None) -> None:
        self.model, self.cache = model, cache
        self.batch_size, self.given = settings.batch_size, settings.reasoning_options()
        check_cache(model, cache)

    def facts(self) -> dict[str, Any]:
        if not hasattr(self.model, "embedding_cache"):
            return {"checkpoint": None}
        from mmemb_r1._fingerprint import checkpoint_fingerprint

        return {"checkpoint": checkpoint_fingerprint(*self.model), **settings_beside(self.model)}

    def reasoning_options(self) -> dict[str, Any]:
        of_checkpoint: dict[str, Any] = {}
        if hasattr(self.model, "embedding_cache"):
            config = self.model[0].model.config
            of_checkpoint = {name: getattr(config, name) for name in OPTIONS}
        return of_checkpoint | self.given

    def embed(self, inputs: list[Any], *, side: str, reasoning: str, prompt: str | None) -> Embedded:
        prompt = saved_prompts(self.model).get(side) if prompt is None else prompt
        options = self.given | {"reasoning": reasoning, "batch_size": self.batch_size, "show_progress_bar": False}
        options |= {"prompt": prompt} if prompt else {}
        with self._watched_cache() as cache:
            start = time.perf_counter()
            rows = self.model.explain(inputs, **options)
            seconds = time.perf_counter() - start
        check_count(rows, inputs)
        # of equal inputs one is looked for
        computed = cache.missing if cache.asked else self._computed(inputs)
        return Embedded(
            embeddings=np.stack([np.asarray(row["embedding"], dtype=np.float32) for row in rows]),
            reasoned=np.array([bool(row["reasoned"]) for row in rows]),
            num_reasoning_tokens=np.array([int(row["num_reasoning_tokens"]) for row in rows]),
            num_reasoning_rounds=np.array([int(row.get("num_reasoning_rounds", row["reasoned"])) for row in rows]),
            gate_prob=np.array([float(row["gate_prob"]) for row in rows]),
            rationales=[row.get("rationale", "") for row in rows],
            seconds=(seconds - cache.seconds) if computed else 0.0,
            timed=computed,
        )

    def _computed(self, inputs: list[Any]) -> int:
        """How many of the inputs the model embeds: mmemb-r1 models take equal ones for one."""
        if not hasattr(self.model, "embedding_cache"):
            return len(inputs)
        from mmemb_r1._adaptive_rows import media_options
        from mmemb_r1._content import distinct

        return len(distinct(inputs, media_options(self.model, {}))[0])

    @contextmanager
    def _watched_cache(self) -> Iterator[WatchedCache]:
        """The given cache, or the model's own, in the model's place for it."""
        own = getattr(self.model, "embedding_cache", None)
        watched = WatchedCache(own if self.cache is None else self.cache)
        if watched.cache is None:
            yield watched
            return
        self.model.embedding_cache = watched
        try:
            yield watched
        finally:
            self.model.embedding_cache = own


def check_cache(model: Any, cache: EmbeddingCache | None) -> None:
    """Refuse a cache for a model that can't use one."""
    if cache is not None and not hasattr(model, "embedding_cache"):
        raise ValueError(
            f"a cache keeps vectors of mmemb-r1 models, and this one is a {type(model).__name__}; leave the cache out"
        )
