"""Search an index with the direct and the reasoned vector of a query, and follow its rationale token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from mmemb_r1.modeling.paths_mmemb_r1 import round_ids
from mmemb_r1.modeling.scheduling_mmemb_r1 import opening_ahead

if TYPE_CHECKING:
    from mmemb_r1 import MMEmbR1
    from mmemb_r1.index import Index, SearchResult


@dataclass(frozen=True)
class Comparison:
    """
    What is known of a query so far.

    Attributes:
        query: its parts, `text` and `image`.
        k: hits at most.
        threshold: gate probability from which the model thinks.
        direct, reasoned: what was found with its direct and with its reasoned vector; a text if that can't be
            searched, with the reason; `None` if it was not searched (yet).
        writing: the rationale so far, while it is being written; otherwise `None`.
    """

    query: Mapping[str, Any]
    k: int
    threshold: float
    direct: SearchResult | str | None = None
    reasoned: SearchResult | str | None = None
    writing: str | None = None

    @property
    def gate_prob(self) -> float | None:
        """Get what the gate said, from 0 to 1; `None` while that is not known."""
        found = [result for result in (self.direct, self.reasoned) if not isinstance(result, str | None)]
        return found[0].gate_prob if found else None

    @property
    def thinks(self) -> bool | None:
        """Tell whether the model thinks at this threshold, by the rule of `reasoning="auto"`; `None` if not known."""
        return None if self.gate_prob is None else bool(np.float32(self.gate_prob) >= np.float32(self.threshold))


class Comparer:
    """
    Search an index for one query at a time, whoever asks.

    Args:
        index: an [`Index`]. Its model is loaded now.
    """

    def __init__(self, index: Index) -> None:
        self.index, self.model = index, index.model
        self._lock = Lock()  # the model's tokens are watched

    @property
    def threshold(self) -> float:
        """Get the checkpoint's threshold."""
        return self.model[0].model.config.gate_threshold

    def compare(self, query: Mapping[str, Any], k: int, threshold: float, both: bool = True) -> Iterator[Comparison]:
        """
        Search directly, then with reasoning if the gate says so; yield whatever is new.

        Args:
            query: `text`, `image` (a path or a PIL image), or both.
            k: hits at most.
            threshold: see [`Comparison`].
            both: whether to reason also where the gate says no, for the comparison.

        Raises:
            ValueError: if there is no query.
        """
        query = {part: value for part, value in query.items() if value not in (None, "")}
        if not query:
            raise ValueError("There is no query: type a text, or drop a picture.")
        found = Comparison(query, k, threshold)
        yield found
        found = replace(found, direct=self._result(found, "never"))
        yield found
        yield from self.decide(found, threshold, both)

    def decide(self, found: Comparison, threshold: float, both: bool = True) -> Iterator[Comparison]:
        """Apply another threshold to what was found; the rationale is written only where it is missing."""
        found = replace(found, threshold=threshold)
        yield found
        if found.reasoned is not None or not (both or found.thinks is not False):
            return
        texts: SimpleQueue[str | None] = SimpleQueue()
        with ThreadPoolExecutor(max_workers=1) as pool:
            search = pool.submit(self._result, found, "always", texts.put)
            search.add_done_callback(lambda _: texts.put(None))
            yield replace(found, writing="")
            while (text := texts.get()) is not None:
                yield replace(found, writing=text)
        yield replace(found, reasoned=search.result())

    def _result(
        self, found: Comparison, reasoning: str, written: Callable[[str], object] | None = None
    ) -> SearchResult | str:
        """Search; what can't be searched, an input that is refused or an index of the other space, is told."""
        with self._lock, watched(self.model, written):
            try:
                return self.index.search(dict(found.query), found.k, reasoning=reasoning)  # type: ignore[return-value]
            except ValueError as error:
                return str(error)


@contextmanager
def watched(model: MMEmbR1, written: Callable[[str], object] | None) -> Iterator[None]:
    """
    Pass on the rationale so far, whenever the model has read one more of its tokens; for one input at a time.

    Args:
        model: whose first module is the adaptive model.
        written: gets the text, several rationales separated by newlines. `None`: nothing is watched.
    """
    if written is None:
        yield
        return
    inner, tokenizer, ids = model[0].model, model.tokenizer, []
    config = inner.config
    unseen = len(config.opening_ids) - len(opening_ahead(config))  # of the opening, read token by token

    def read(module: Any, arguments: tuple[Any, ...]) -> None:
        if arguments[0].shape == (1, 1):  # all others are prompts, or ids of placeholders
            ids.append(int(arguments[0]))
            rounds = round_ids(config, ids[unseen:])
            written("\n".join(text for one in rounds if (text := tokenizer.decode(one).strip())))

    handle = inner.get_input_embeddings().register_forward_pre_hook(read)
    try:
        yield
    finally:
        handle.remove()
