"""Build the trials for the evaluator from the tables of pairs and rationales."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
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
from mmemb_r1.training.selection.pairs import Negatives, NegativeSampler, PairIndex, other_side
from mmemb_r1.training.tables import StoredInputs, StoredValues, positions_in

REQUIRED_COLUMNS = ("pair_id", "side", "worker", "sample", "text")
FAILED, EMPTY, CUT, ALONE = "failed", "empty", "cut off", "nothing to swap with"
KEY_SIZE = 16  # bytes
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
class PlannedTrial:
    """
    Say what a trial is to ask, without its inputs.

    Args:
        group: the rationales that it is about.
        negatives: the wrong partners.
        texts: the rationales; `None` where there is none.
        replacements: what the intervention puts in their place.
        unusable: for each, why it is not scored, or `None`.
        digests: of the anchor, the other side and the negatives, equal for equal inputs in any table.
    """

    group: RationaleGroup
    negatives: Negatives
    texts: list[str | None]
    replacements: list[str | None]
    unusable: list[str | None]
    digests: list[bytes]

    def keys(self, evaluator: str) -> list[bytes | None]:
        """
        Digest, for each rationale, all that its score depends on, `None` where it is not scored: 16 bytes.

        Args:
            evaluator: all that determines its answers, as text.
        """
        common = [evaluator, self.group.side, *(digest.hex() for digest in self.digests)]
        return [
            None if reason else blake2b(json.dumps([common, *words]).encode(), digest_size=KEY_SIZE).digest()
            for reason, *words in zip(self.unusable, self.texts, self.replacements, strict=True)
        ]


@dataclass(frozen=True)
class BuiltTrial:
    """
    A trial, and how to read the evaluator's answer to it.

    Args:
        trial: the question. Its first rationale is `None`; no two are the same.
        names: of the trial's inputs, the anchor first; for error messages.
        with_columns: for each rationale of the group, its column of the answer; `None` if it was not asked about.
        without_columns: for each, the column of what the intervention puts in its place.
    """

    trial: Trial
    names: list[str]
    with_columns: list[int | None]
    without_columns: list[int | None]

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
        self._own_negatives = StoredValues(pairs, "negatives") if "negatives" in pairs.column_names else []
        self._texts = StoredValues(candidates.table, "text")
        self._donors = donors(candidates, index, options.seed) if options.intervention == "swap" else None
        self._negatives = NegativeSampler(index, options.num_negatives, options.seed)
        self._negatives.check((group.pair, group.side) for group in candidates)

    def __len__(self) -> int:
        return len(self.candidates)

    def plan(self, number: int) -> PlannedTrial:
        """Plan the trial of a group: which rationales and which partners."""
        group = self.candidates[number]
        unusable = self.candidates.unusable[group.rows].tolist()
        texts = self._read(group.rows)
        if self._donors is not None:
            alone = (self._donors[group.rows] < 0).tolist()
            unusable = [reason or (ALONE if lonely else None) for reason, lonely in zip(unusable, alone, strict=True)]
        negatives, other = self._negatives.draw(group.pair, group.side), other_side(group.side)
        index = self.index
        contents = [
            index.content[group.side][group.pair],
            index.content[other][group.pair],
            *(index.negatives[group.pair][number] for number in negatives.own),
            *(index.content[other][row] for row in negatives.rows),
        ]
        digests = [index.digests[content].tobytes() for content in contents]
        return PlannedTrial(group, negatives, texts, self._replacements(group, texts), unusable, digests)

    def build(self, plan: PlannedTrial, asked: Sequence[bool]) -> BuiltTrial:
        """Build a planned trial, about those of its rationales that are to be `asked` about."""
        columns: dict[str | None, int] = {None: 0}
        for text, replacement, is_asked in zip(plan.texts, plan.replacements, asked, strict=True):
            for rationale in (text, replacement) if is_asked else ():
                columns.setdefault(rationale, len(columns))
        names, (anchor, *others) = zip(*self._named_inputs(plan), strict=True)
        return BuiltTrial(
            trial=Trial(plan.group.side, anchor, others, list(columns)),
            names=list(names),
            with_columns=[columns[text] if wanted else None for text, wanted in zip(plan.texts, asked, strict=True)],
            without_columns=[
                columns[replacement] if wanted else None
                for replacement, wanted in zip(plan.replacements, asked, strict=True)
            ],
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
        return [self._texts[row] for row in rows]

    def _named_inputs(self, plan: PlannedTrial) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the inputs of a trial with names for messages: the anchor, its other side, its negatives."""
        group, other, ids = plan.group, other_side(plan.group.side), self.index.ids
        for side, row in ((group.side, group.pair), (other, group.pair)):
            yield f"the {side} of pair {ids[row]!r}", self._inputs[side][row]
        for number in plan.negatives.own:
            value = self._own_negatives[group.pair][number]
            yield f"the negative {number} of pair {ids[group.pair]!r}", given_parts(value)
        for row in plan.negatives.rows:
            yield f"the {other} of pair {ids[row]!r}", self._inputs[other][row]
