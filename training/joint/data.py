"""Read the joint phase's data: selected rationales and pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from datasets import Dataset as Table
from torch.utils.data import Dataset

from mmemb_r1.tables.rows import ROWS_AT_ONCE
from mmemb_r1.training.tables import check_pairs, number_rows, stored_batches, stored_input, text_numbers

COLUMNS = ("pair_id", "side", "text")


class Drawn(NamedTuple):
    """Hold a rationale, its posterior, and the segments of it that may become rounds."""

    text: str
    posterior: float
    segments: Sequence[str]


class SelectedRationales:
    """
    Draw from the selected rationales of each pair and side, by their posterior.

    Args:
        table: what `mmemb-r1 select` wrote: the columns `pair_id`, `side`, `text` and, optionally, `posterior`
            (default: all of a pair's are equally likely), `worker`, and `segments`, which may become rounds. Anything
            else is a `ValueError`.
        best_only: always draw the one of the highest posterior, of equal ones the first.
    """

    def __init__(self, table: Table, best_only: bool = False) -> None:
        check_selected(table)
        self.best_only = best_only

        self._has_segments = "segments" in table.column_names
        names = [*COLUMNS, *({"posterior", "worker", "segments"} & set(table.column_names))]
        self._table = table.select_columns(names).with_format("arrow")
        ids, keys, posteriors, workers, row = [], [], [], Counter[Any](), 0
        for batch in self._table.iter(ROWS_AT_ONCE):
            rows = batch.to_pylist()
            for one in rows:
                _check_row(row, one["side"], *self._drawn(one))
                row += 1
            ids.append(text_numbers(str(one["pair_id"]) for one in rows))
            keys.append(text_numbers(_group(one["pair_id"], one["side"]) for one in rows))
            posteriors.append(np.array([self._drawn(one).posterior for one in rows], dtype=np.float64))
            workers.update(one["worker"] for one in rows if "worker" in one)
        self._posteriors = np.concatenate(posteriors)  # (N,)
        unsorted = np.concatenate(keys)  # (N, 2)
        self._order = np.lexsort((unsorted[:, 1], unsorted[:, 0]))  # (N,) rows, those of a side of a pair together
        self._keys = unsorted[self._order]
        self.num_pairs = int(number_rows(np.concatenate(ids)).max()) + 1  # that have a rationale
        self.num_rationales = len(table)
        self.workers = dict(sorted(workers.items()))

    def covered(self, pairs: Table) -> int:
        """Count the rows of a pairs table, with `pair_id`, that have a rationale."""
        return shared_ids(self._table, pairs)[0]

    def draw(self, pair_id: str, side: str, rng: np.random.Generator) -> Drawn | None:
        """
        Draw a rationale of a pair's `"query"` or `"target"`; `None` if it has none.

        One number is drawn from `rng` in any case.
        """
        number = rng.random()
        rows = self._rows(pair_id, side)
        if not len(rows):
            return None
        posteriors = self._posteriors[rows]
        shares = posteriors / posteriors.sum()
        place = int(np.searchsorted(np.cumsum(shares), number, side="right"))
        place = min(place, len(rows) - 1)  # the sum may end a rounding below 1
        if self.best_only:
            place = int(shares.argmax())
        (row,) = self._table[int(rows[place]) : int(rows[place]) + 1].to_pylist()
        drawn = self._drawn(row)
        return drawn._replace(posterior=float(shares[place]), segments=tuple(drawn.segments))

    def _rows(self, pair_id: str, side: str) -> npt.NDArray[np.int64]:
        """Find the rows of a side of a pair, in their order."""
        (key,) = text_numbers([_group(pair_id, side)])
        first, last = (int(np.searchsorted(self._keys[:, 0], key[0], side)) for side in ("left", "right"))
        return self._order[first:last][self._keys[first:last, 1] == key[1]]

    def _drawn(self, row: Mapping[str, Any]) -> Drawn:
        segments = row["segments"] if self._has_segments else [row["text"]]
        return Drawn(row["text"], row.get("posterior", 1.0), segments)


def _group(pair_id: Any, side: Any) -> str:
    """Name a side of a pair."""
    return f"{side}\n{pair_id}"


def check_selected(table: Table) -> None:
    """Check that a table of selected rationales has its columns and some rows; else it is a `ValueError`."""
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise ValueError(
            f"The selected table has no column {missing[0]!r}; it has: {', '.join(table.column_names) or 'none'}. "
            "Give it selected.parquet, as `mmemb-r1 select` writes it."
        )
    if len(table) == 0:
        raise ValueError("The selected table has no rows: nothing was kept. Select with another margin, or without.")


def _check_row(row: int, side: Any, text: Any, posterior: Any, segments: Any) -> None:
    found = None
    if side not in ("query", "target"):
        found = f"the side {side!r}; allowed: query, target"
    elif not isinstance(text, str) or not text.strip():
        found = f"the text {text!r}; allowed: text that is not blank"
    elif posterior is None or not math.isfinite(posterior) or posterior <= 0:
        found = f"the posterior {posterior!r}; allowed: numbers above 0. Only what was kept belongs here"
    elif not segments or not all(isinstance(part, str) and part.strip() for part in segments):
        found = f"the segments {segments!r}; allowed: a list of texts that are not blank"
    if found:
        raise ValueError(f"The selected table has in row {row}, counted from 0, {found}.")


class DrawnRow(NamedTuple):
    """
    Name a row of the table at its position in an epoch, from which, and the run's seed, all randomness follows.

    So a run that was killed goes on as if it had not been, whatever the number of processes and data workers.
    """

    row: int
    epoch: int
    position: int


# A pair as the collator takes it: pair_id, query, target, negatives and seed (of the augmentation), and for each side
# query_rationale (segments; none for the direct path alone) and query_weight (of the rationale's tokens in the loss).
Example = dict[str, Any]


class JointPairs(Dataset[Example]):
    """
    Turn rows of a pairs table into examples, with other draws, by the seed, each time.

    Args:
        table: the pairs, with `query`, `target` and, optionally, `pair_id`, `negatives`, `query_rationale` and
            `target_rationale` (lists of segments).
        rationales: drawn from instead of the table's own rationales.
        weight_by_posterior: whether a drawn rationale weighs as much as its posterior. Default: each weighs 1.
        num_hard_negatives: drawn from `negatives`, without replacement; fewer where a pair has fewer.
        without: `"query_rationale"` and `"target_rationale"` -> rows whose own rationale is not used.

    Raises:
        ValueError: if a column that is needed is missing, or none of the rationales is of these pairs.
    """

    def __init__(
        self,
        table: Any,
        seed: int,
        rationales: SelectedRationales | None = None,
        weight_by_posterior: bool = False,
        num_hard_negatives: int = 0,
        without: Mapping[str, Collection[int]] | None = None,
    ) -> None:
        columns = table.column_names
        if num_hard_negatives and "negatives" not in columns:
            raise ValueError(
                f"num_hard_negatives={num_hard_negatives}, but the pairs table has no column 'negatives'; it has: "
                f"{', '.join(columns)}."
            )
        if rationales is not None:
            if "pair_id" not in columns:
                raise ValueError(
                    "Selected rationales are found by pair_id, which the pairs table lacks; it has: "
                    f"{', '.join(columns)}."
                )
            if not rationales.covered(table):
                raise ValueError(
                    f"None of the {rationales.num_pairs} pairs of the selected table is in the pairs table; give "
                    "both of the same run."
                )
        used = ["pair_id", "query", "target"]
        used += [] if rationales is not None else ["query_rationale", "target_rationale"]
        used += ["negatives"] if num_hard_negatives else []
        # as it is stored: pictures are opened where a batch is made, by the same rules as everywhere
        table = table.select_columns([name for name in used if name in columns]).with_format("arrow")
        self.table, self.seed, self.rationales, self.without = table, seed, rationales, dict(without or {})
        self.weight_by_posterior, self.num_hard_negatives = weight_by_posterior, num_hard_negatives

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, drawn: DrawnRow) -> Example:
        (row,) = self.table[drawn.row : drawn.row + 1].to_pylist()
        rng = np.random.default_rng((self.seed, drawn.epoch, drawn.position))
        pair_id = row.get("pair_id") or f"row {drawn.row}"
        example: Example = {"pair_id": pair_id}
        for side in ("query", "target"):
            segments, weight = self._rationale(row, drawn.row, pair_id, side, rng)
            example |= {
                side: stored_input(row[side]),
                f"{side}_rationale": segments,
                f"{side}_weight": weight,
            }
        negatives = [stored_input(value) for value in row.get("negatives") or []] if self.num_hard_negatives else []
        chosen = rng.permutation(len(negatives))[: self.num_hard_negatives]
        example["negatives"] = [negatives[place] for place in sorted(chosen.tolist())]
        return {**example, "seed": int(rng.integers(2**63))}

    def _rationale(
        self, row: dict[str, Any], number: int, pair_id: str, side: str, rng: np.random.Generator
    ) -> tuple[list[str], float]:
        if self.rationales is None:
            own = f"{side}_rationale"
            return [] if number in self.without.get(own, ()) else list(row.get(own) or []), 1.0
        rationale = self.rationales.draw(pair_id, side, rng)
        if rationale is None:
            return [], 1.0
        return list(rationale.segments), rationale.posterior if self.weight_by_posterior else 1.0


def check_tables(train: Any, other: Any) -> None:
    """
    Check the table that is trained on and the one, if any, that is evaluated on, and that they share no `pair_id`.
    """
    tables = {"the pairs table": train} | ({} if other is None else {"the evaluation table": other})
    for name, table in tables.items():
        if not isinstance(table, Table):
            raise ValueError(
                f"{name} is a {type(table).__name__}; allowed: datasets.Dataset. Read a Parquet file with "
                "mmemb_r1.training.tables.read_pairs."
            )
        check_pairs(table, [*({"pair_id"} & set(table.column_names)), "query", "target"], name)
    if other is not None and "pair_id" in train.column_names and "pair_id" in other.column_names:
        number, example = shared_ids(train, other)
        if number:
            raise ValueError(
                f"{number} pairs, {example!r} for one, are in the pairs table and in the evaluation table: "
                "what was trained on can't be evaluated on. Take them out of one."
            )


def shared_ids(table: Table, other: Table) -> tuple[int, str | None]:
    """Count the rows of `other` whose `pair_id` is in `table`, and name the first."""
    ours, theirs = (
        np.concatenate([text_numbers(map(str, batch.to_pylist())) for batch in stored_batches(one, "pair_id")])
        for one in (table, other)
    )
    known = int(number_rows(ours).max()) + 1
    shared = np.flatnonzero(number_rows(np.concatenate([ours, theirs]))[len(ours) :] < known)
    example = other.select_columns(["pair_id"])[int(shared[0])]["pair_id"] if len(shared) else None
    return len(shared), example
