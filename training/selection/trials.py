"""Build the trials for the evaluator from the tables of pairs and rationales."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from mmemb_r1.content import given_parts
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError, to_conversations
from mmemb_r1.rationale_tokens import shuffled, swap_donors
from mmemb_r1.training.rationales.worker import SIDES
from mmemb_r1.training.selection.config import SelectionOptions
from mmemb_r1.training.selection.evaluator import Trial
from mmemb_r1.training.selection.pairs import NegativeSampler, PairIndex, other_side
from mmemb_r1.training.tables import StoredInputs, positions_in, stored_column

REQUIRED_COLUMNS = ("pair_id", "side", "worker", "sample", "text")
FAILED, EMPTY, CUT, ALONE = "failed", "empty", "cut off", "nothing to swap with"
_BATCH = 4096


@dataclass(frozen=True)
class RationaleGroup:
    """Names all rationales proposed for one side of one pair."""

    pair: int  # row of the pairs table
    side: str
    rows: list[int]  # of the rationales table


@dataclass(frozen=True)
class Candidates:
    """
    Indexes a rationales table by groups.

    Args:
        table: the rationales.
        pairs: `(N,)` row of each rationale's pair.
        sides: `(N,)` 0 for the query, 1 for the target.
        unusable: `(N,)` why a rationale can't be scored, `None` where it can.
        order: `(N,)` rows of the table, group by group, in the order of the pairs table.
        starts: `(G + 1,)` where in `order` each group begins.
        fingerprint: equal for tables with the same rows in the same order.
    """

    table: Dataset
    pairs: npt.NDArray[np.int64]
    sides: npt.NDArray[np.int64]
    unusable: npt.NDArray[np.object_]
    order: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    fingerprint: str

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[RationaleGroup]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> RationaleGroup:
        rows = self.order[self.starts[number] : self.starts[number + 1]]
        return RationaleGroup(int(self.pairs[rows[0]]), SIDES[self.sides[rows[0]]], rows.tolist())


def check_candidates(rationales: Dataset) -> None:
    """Check that a rationales table has its columns; else it is a `ValueError`."""
    if missing := [name for name in REQUIRED_COLUMNS if name not in rationales.column_names]:
        raise ValueError(
            f"the rationales table has no column {missing[0]!r}; needed: "
            f"{', '.join(REQUIRED_COLUMNS)}. It has: {', '.join(rationales.column_names)}"
        )


def index_candidates(rationales: Dataset, index: PairIndex) -> Candidates:
    """
    Check a rationales table and find its groups.

    Raises:
        ValueError: if a column is missing or holds something else, a side is unknown, a rationale's pair is not in
            the pairs table, or no rationale is usable.
    """
    check_candidates(rationales)
    columns = _checked(rationales.with_format("arrow")[:])
    sides = positions_in(columns["side"], SIDES)
    if (sides < 0).any():
        row = int(sides.argmin())
        given = columns["side"][row].as_py()
        raise ValueError(f"row {row} of the rationales table has the side {given!r}; allowed: {', '.join(SIDES)}")
    pairs = _known_pairs(columns["pair_id"], index)
    unusable = _unusable(columns)
    if unusable.astype(bool).all():
        raise ValueError(
            f"none of the {len(unusable)} rows of the rationales table holds a rationale: "
            f"{(unusable == FAILED).sum()} failed, {(unusable == EMPTY).sum()} are empty, {(unusable == CUT).sum()} "
            "were cut off. See their column error, or give the worker a larger budget"
        )
    order = np.lexsort((sides, pairs))  # stable: inside a group the table's order
    begins = (np.diff(pairs[order]) != 0) | (np.diff(sides[order]) != 0)
    starts = np.concatenate([[0], np.flatnonzero(begins) + 1, [len(order)]])
    return Candidates(rationales, pairs, sides, unusable, order, starts, _fingerprint(rationales))


def donors(candidates: Candidates, index: PairIndex, seed: int = 0) -> npt.NDArray[np.int64]:
    """Draw for each rationale another input's of the same task, side and worker: `(N,)` its row, -1 for none."""
    columns = candidates.table.with_format("arrow")[:].select(["pair_id", "side", "worker", "sample"])
    _, tasks = np.unique(np.array(index.tasks), return_inverse=True)
    _, workers = np.unique(columns["worker"].to_numpy(), return_inverse=True)
    strata = (tasks[candidates.pairs] * 2 + candidates.sides) * (workers.max() + 1) + workers
    strata[candidates.unusable.astype(bool)] = -1
    contents = np.stack([index.content[side] for side in SIDES])  # (2, P)
    anchors = contents[candidates.sides, candidates.pairs]
    return swap_donors(strata, anchors, list(zip(*columns.to_pydict().values(), strict=True)), seed)


def _checked(columns: pa.Table) -> pa.Table:
    """Check the table's text columns, and return it with all of them as plain strings."""
    for name in ("pair_id", "side", "worker", "text"):
        column = columns[name]
        if column.type not in (pa.string(), pa.large_string(), pa.null()):
            raise ValueError(f"the column {name!r} of the rationales table holds {column.type}; allowed: text")
        if name != "text" and column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise ValueError(f"row {row} of the rationales table has no {name}; only the text may be missing")
        columns = columns.set_column(columns.column_names.index(name), name, column.cast(pa.string()))
    return columns


def _known_pairs(ids: pa.ChunkedArray, index: PairIndex) -> npt.NDArray[np.int64]:
    pairs = positions_in(ids, index.ids)
    if lost := (pairs < 0).sum():
        unknown = pc.unique(pc.filter(ids, pa.array(pairs < 0))).to_pylist()
        shown = ", ".join(map(repr, unknown[:3])) + (" ..." if len(unknown) > 3 else "")
        raise ValueError(
            f"{lost} rationales are about {len(unknown)} pairs that the pairs table lacks: {shown}. Pass the table "
            "that they were drawn for"
        )
    return pairs


def _unusable(columns: pa.Table) -> npt.NDArray[np.object_]:
    texts = columns["text"]
    reasons = np.full(len(texts), None, dtype=object)
    reasons[pc.equal(pc.utf8_trim_whitespace(texts), "").fill_null(False).to_numpy()] = EMPTY
    if "finish_reason" in columns.column_names:  # trained on, half a rationale would teach to stop in the middle
        reasons[pc.equal(columns["finish_reason"].cast(pa.string()), "length").fill_null(False).to_numpy()] = CUT
    failed = texts.is_null().to_numpy()
    if "error" in columns.column_names:
        failed = failed | columns["error"].is_valid().to_numpy()
    reasons[failed] = FAILED
    return reasons


def _fingerprint(table: Dataset) -> str:
    digest = blake2b(digest_size=16)
    for batch in table.with_format("arrow").iter(_BATCH):
        digest.update(repr(batch.to_pydict()).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class BuiltTrial:
    """
    A trial, and how to read the evaluator's answer to it.

    Args:
        trial: the question. Its first rationale is `None`; no two are the same.
        group: the rationales that it is about.
        names: of the trial's inputs, the anchor first; for error messages.
        with_columns: for each rationale of the group, its column of the answer.
        without_columns: for each, the column of what the intervention puts in its place.
        unusable: for each, why it is not scored (its columns mean nothing then), or `None`.
    """

    trial: Trial
    group: RationaleGroup
    names: list[str]
    with_columns: list[int]
    without_columns: list[int]
    unusable: list[str | None]

    @property
    def is_scored(self) -> bool:
        """Whether there is a rationale to score."""
        return not all(self.unusable)

    def complaint(self, reason: str) -> str:
        """Say why the evaluator can't answer: which input can't be read, if it is that."""
        for name, value in zip(self.names, [self.trial.anchor, *self.trial.others], strict=True):
            try:
                to_conversations([value])
            except InputError as error:
                return f"{name} can't be read: {error.reason}"
        return f"{self.names[0]} can't be tried on {len(self.trial.others)} inputs of the other side: {reason}"


class TrialBuilder:
    """
    Builds one trial per group of rationales, on demand: only the rows that it needs are read, and no picture is
    decoded. Refuses a table with too few pairs to draw negatives from.
    """

    def __init__(self, pairs: Dataset, index: PairIndex, candidates: Candidates, options: SelectionOptions) -> None:
        self.index, self.candidates, self.options = index, candidates, options
        self._inputs = {side: StoredInputs(pairs, side) for side in SIDES}
        self._own_negatives = stored_column(pairs, "negatives") if "negatives" in pairs.column_names else []
        self._texts = stored_column(candidates.table, "text")
        self._donors = donors(candidates, index, options.seed) if options.intervention == "swap" else None
        self._negatives = NegativeSampler(index, options.num_negatives, options.seed)
        self._negatives.check((group.pair, group.side) for group in candidates)

    def __len__(self) -> int:
        return len(self.candidates)

    def build(self, numbers: Iterable[int]) -> list[BuiltTrial]:
        """Build the trials of these groups."""
        return [self._built(self.candidates[number]) for number in numbers]

    def _built(self, group: RationaleGroup) -> BuiltTrial:
        unusable = self.candidates.unusable[group.rows].tolist()
        texts = self._read(group.rows)
        replacements = self._replacements(group, texts)
        if self._donors is not None:
            alone = (self._donors[group.rows] < 0).tolist()
            unusable = [reason or (ALONE if lonely else None) for reason, lonely in zip(unusable, alone, strict=True)]
        columns: dict[str | None, int] = {None: 0}
        for text, replacement, reason in zip(texts, replacements, unusable, strict=True):
            for rationale in (text, replacement) if reason is None else ():
                columns.setdefault(rationale, len(columns))
        names, (anchor, *others) = zip(*self._named_inputs(group), strict=True)
        return BuiltTrial(
            trial=Trial(group.side, anchor, others, list(columns)),
            group=group,
            names=list(names),
            with_columns=[columns.get(text, 0) for text in texts],
            without_columns=[columns.get(replacement, 0) for replacement in replacements],
            unusable=unusable,
        )

    def _replacements(self, group: RationaleGroup, texts: list[str | None]) -> list[str | None]:
        """Return what the intervention puts in the place of each rationale."""
        if self._donors is not None:
            return self._read(self._donors[group.rows].tolist())
        if self.options.intervention == "shuffle":
            return [shuffled(text or "", self.options.seed) for text in texts]
        return [None] * len(texts)

    def _read(self, rows: list[int]) -> list[str | None]:
        """Read texts of the rationales table; a negative row gives any text."""
        return [self._texts[row].as_py() for row in rows]

    def _named_inputs(self, group: RationaleGroup) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the inputs of a trial with names for messages: the anchor, its other side, its negatives."""
        negatives, other = self._negatives.draw(group.pair, group.side), other_side(group.side)
        ids = self.index.ids
        for side, row in ((group.side, group.pair), (other, group.pair)):
            yield f"the {side} of pair {ids[row]!r}", self._inputs[side][row]
        for number in negatives.own:
            value = self._own_negatives[group.pair][number].as_py()
            yield f"the negative {number} of pair {ids[group.pair]!r}", given_parts(value)
        for row in negatives.rows:
            yield f"the {other} of pair {ids[row]!r}", self._inputs[other][row]
