"""Search an index by texts, pictures and whatever else the model embeds."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmemb_r1.content import as_input
from mmemb_r1.encoding import options_in_one_space
from mmemb_r1.fingerprint import checkpoint_fingerprint
from mmemb_r1.index.building import ABOUT, SETTINGS, unit
from mmemb_r1.index.results import Hit, SearchResult, fused, varied
from mmemb_r1.index.store import nearest_rows, open_rows, rows_with_words
from mmemb_r1.modeling.inputs_mmemb_r1 import parse_input
from mmemb_r1.modeling.options_mmemb_r1 import check_options, check_same_space
from mmemb_r1.runs import read_json
from mmemb_r1.sentence_transformers import MMEmbR1
from mmemb_r1.stream import FIXED

if TYPE_CHECKING:
    from lancedb.table import Table

CANDIDATES = 4  # times k: what is looked at for variety
FUSED = 50  # of each ranking at least; an item that is first in one and far down in the other may be the best
MOST = 10_000  # hits


class Index:
    """
    An index that `build_index` made.

    It shows what is in the folder at each search, also while another process brings it up to date.

    Attributes:
        directory: the folder.
        settings: what its vectors depend on: `checkpoint`, `reasoning`, `reasoning_options`, `options`.
        source: what was indexed.
    """

    def __init__(self, directory: Path, table: Table, model: MMEmbR1 | None = None, device: Any = None) -> None:
        self.directory, self.table, self.device = directory, table, device
        self.settings: dict[str, Any] = read_json(directory / SETTINGS)
        about = read_json(directory / ABOUT)
        self.source: str = about["source"]
        self._model_name: str = about["model"]
        self._model: MMEmbR1 | None = None
        if model is not None:
            self._take(model)

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        model: MMEmbR1 | str | os.PathLike[str] | None = None,
        *,
        device: Any = None,
    ) -> Index:
        """
        Open an index.

        Args:
            directory: of the index.
            model: the model that it was built with, or its folder or Hub id. Default: the one that the index names is
                loaded for the first search.
            device: where a model is loaded to.

        Raises:
            ValueError: if there is no index, or the model is another one than it was built with.
        """
        folder = Path(directory).expanduser()
        table = open_rows(folder)
        if table is None:
            raise ValueError(f"{folder} holds no index; make one: mmemb-r1 index SOURCE --model DIR --index {folder}")
        if model is not None and not isinstance(model, MMEmbR1):
            model = MMEmbR1(os.fspath(model), device=device)
        return cls(folder, table, model, device)

    def __len__(self) -> int:
        """Count the items."""
        return self.table.count_rows()

    @property
    def model(self) -> MMEmbR1:
        """Get the model that embeds the queries."""
        if self._model is None:
            if not self._model_name:
                raise ValueError(
                    f"the index {self.directory} was built with a model that was in memory alone; pass it: "
                    "Index.open(directory, model)"
                )
            self._take(MMEmbR1(self._model_name, device=self.device))
        return self._model  # type: ignore[return-value]

    def _take(self, model: MMEmbR1) -> None:
        if checkpoint_fingerprint(*model) != self.settings["checkpoint"]:
            raise ValueError(
                f"the index {self.directory} was built with another model ({self._model_name or 'one in memory'}) "
                "than the one that is to embed the queries; vectors of two models can't be compared. Use that one, or "
                "build the index anew."
            )
        self._model = model

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        reasoning: str | None = None,
        gate_threshold: float | None = None,
        filter: str | None = None,
        exact: bool = False,
        variety: float = 0.0,
        hybrid: bool = False,
        **options: Any,
    ) -> list[SearchResult] | SearchResult:
        """
        Find the items whose vectors are nearest to those of queries, by cosine.

        Args:
            queries: one, or a list, of what `encode_query` takes.
            k: hits of a query at most.
            reasoning, gate_threshold: whether queries are thought about, as in `encode_query`; whether the items were,
                the index says.
            filter: a condition of SQL that hits meet, over `id`, `kind`, `path`, `page`, `text` and, of a table's
                other columns, `metadata.NAME`.
            exact: whether all vectors are compared, where the index has one for approximate search.
            variety: from 0 (none) to 1: how much hits are to differ from each other. 1 - `relevance` of
                [`~mmemb_r1.index.results.varied`], over the best 4 k.
            hybrid: whether a second ranking is fused in: items whose words (text, metadata, their rationale) match
                those of the query's rationale, or of its text where there is none. See
                [`~mmemb_r1.index.results.fused`].
            **options: others of `encode_query`: `max_reasoning_tokens`, `prompt`, `batch_size` and so on.

        Returns:
            A [`SearchResult`] per query; of a single query, that one.

        Raises:
            InputError: a `ValueError` that names a query that can't be embedded.
            ValueError: if an option is out of its range; for queries of another space than the items'; for a filter
                that is no condition.
        """
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MOST:
            raise ValueError(f"k={k!r:.80} has to be a whole number from 1 to {MOST}.")
        if isinstance(variety, bool) or not isinstance(variety, int | float) or not 0 <= variety <= 1:
            raise ValueError(f"variety={variety!r:.80} has to be a number from 0 to 1.")
        start = time.perf_counter()
        is_single = self.model.is_singular_input(queries)
        inputs = [queries] if is_single else [as_input(query) for query in queries]
        if not inputs:
            return []
        explained = self._embedded(inputs, {"reasoning": reasoning, "gate_threshold": gate_threshold, **options})
        found = [
            self._hits(unit(one["embedding"]), _words(one, value) if hybrid else None, k, filter, exact, variety)
            for value, one in zip(inputs, explained, strict=True)
        ]
        seconds = (time.perf_counter() - start) / len(inputs)
        names = ("gate_prob", "reasoned", "rationale", "num_reasoning_tokens")
        results = [
            SearchResult(hits, **{name: one[name] for name in names}, seconds=seconds)
            for hits, one in zip(found, explained, strict=True)
        ]
        return results[0] if is_single else results

    def nearest(
        self, vector: npt.NDArray[np.float32], k: int = 10, *, filter: str | None = None, exact: bool = False
    ) -> list[Hit]:
        """
        Find the items nearest to a vector `(D,)` that was embedded before, by this index's model and for its space.

        Raises:
            ValueError: if the vector has another length, or the filter is no condition.
        """
        return self._hits(unit(vector), None, k, filter, exact, 0.0)

    def _embedded(self, inputs: list[Any], given: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Embed queries with the options that the index's vectors demand."""
        if fixed := [name for name in FIXED if name in given]:
            raise ValueError(f"{fixed[0]} can't be chosen for a search. Leave it out.")
        demanded = {name: self.settings["options"][name] for name in ("truncate_dim", "normalize_embeddings")}
        for name, value in demanded.items():
            if given.get(name) not in (None, value):
                raise ValueError(f"{name}={given[name]!r}: the index was built with {value!r}; leave it out.")
        options, thinking = options_in_one_space(self.model, check_options({"task": "query", **given, **demanded}))
        check_same_space(self.model[0].model.config.spaces, thinking["reasoning"], self.settings["reasoning"])
        return self.model.explain(inputs, **{"show_progress_bar": False, **options})  # type: ignore[return-value]

    def _hits(
        self,
        query: npt.NDArray[np.float32],
        words: str | None,
        k: int,
        condition: str | None,
        exact: bool,
        variety: float,
    ) -> list[Hit]:
        dim = self.table.schema.field("vector").type.list_size
        if query.shape != (dim,):
            raise ValueError(f"the query's vector has the shape {query.shape}, and those of the index ({dim},).")
        depth = CANDIDATES * k if variety > 0 else k
        if words is not None:
            depth = max(depth, CANDIDATES * k, FUSED)
        found = nearest_rows(self.table, query, depth, condition, exact)
        rows = _by_score(found.to_pylist(), query)
        if words is not None:
            matching = rows_with_words(self.table, words, depth, condition).to_pylist()
            by_id = {row["id"]: row for row in [*_scored(matching, query), *rows]}
            rows = [by_id[name] for name in fused([[row["id"] for row in rows], [row["id"] for row in matching]])]
        if variety > 0:
            vectors = np.array([row["vector"] for row in rows], dtype=np.float32).reshape(-1, dim)  # (N, D)
            scores = np.array([row["score"] for row in rows], dtype=np.float32)
            rows = [rows[place] for place in varied(scores, vectors, k, 1 - variety)]
        return [self._hit(row) for row in rows[:k]]

    def _hit(self, row: Mapping[str, Any]) -> Hit:
        path, folder = row["path"], Path(self.source)
        if path is not None and folder.is_dir() and (folder / path).is_file():
            path = str(folder / path)
        given = {name: row[name] for name in ("id", "score", "kind", "page", "text", "thumbnail")}
        return Hit(**given, path=path, metadata=row.get("metadata") or {})


def _scored(rows: list[dict[str, Any]], query: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    """Add to rows the cosine with a query, in full precision."""
    vectors = np.array([row["vector"] for row in rows], dtype=np.float32).reshape(-1, len(query))  # (N, D)
    return [{**row, "score": float(score)} for row, score in zip(rows, vectors @ query, strict=True)]


def _by_score(rows: list[dict[str, Any]], query: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    return sorted(_scored(rows, query), key=lambda row: (-row["score"], row["id"]))


def _words(explained: Mapping[str, Any], value: Any) -> str:
    """Get the words that a second ranking is made of: the rationale's, or those of the query where there is none."""
    if explained["rationale"]:
        return explained["rationale"]
    parts: Sequence[Any] = [part for message in parse_input(value) for part in message["content"]]
    return " ".join(part["text"] for part in parts if part["type"] == "text")
