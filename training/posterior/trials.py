"""From the tables to what an evaluator is asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from datasets import Dataset

from mmemb_r1._inputs import given_parts
from mmemb_r1._interventions import shuffled
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError, to_conversations
from mmemb_r1.training.posterior.candidates import ALONE, Candidates, Group, donors
from mmemb_r1.training.posterior.evaluator import Trial
from mmemb_r1.training.posterior.negatives import Negatives, NegativeSampler
from mmemb_r1.training.posterior.options import SelectionOptions
from mmemb_r1.training.posterior.pair_index import PairIndex, other_side
from mmemb_r1.training.prior.worker import SIDES
from mmemb_r1.training.tables import StoredInputs, stored_column


@dataclass(frozen=True)
class Posed:
    """
    A trial, and how it is read.

    Args:
        trial: what to ask. Its first rationale is `None`; no two are the same.
        group: the rationales that it is about.
        names: of the trial's inputs, the anchor first; for error messages.
        with_columns: for each rationale of the group, its place among those of the trial.
        without_columns: the place of what the intervention puts there.
        unusable: why a rationale is not judged (its places mean nothing then), or `None`.
    """

    trial: Trial
    group: Group
    names: list[str]
    with_columns: list[int]
    without_columns: list[int]
    unusable: list[str | None]

    @property
    def is_judged(self) -> bool:
        """Whether there is a rationale to judge."""
        return not all(self.unusable)

    def complaint(self, reason: str) -> str:
        """What to say when it can't be judged: which pair's input can't be read, if it is that."""
        for name, value in zip(self.names, [self.trial.anchor, *self.trial.others], strict=True):
            try:
                to_conversations([value])
            except InputError as error:
                return f"{name} can't be read: {error.reason}"
        return f"{self.names[0]} can't be tried on {len(self.trial.others)} inputs of the other side: {reason}"


class Trials:
    """
    One trial per group of rationales, made when it is asked for: only the rows that it needs are read, and no picture
    is decoded.

    Args:
        pairs: the pairs table.
        index: of it.
        candidates: the rationales.
        options: its intervention, number of negatives and seed.

    Raises:
        ValueError: if the table has too few pairs to draw negatives from.
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

    def pose(self, numbers: Iterable[int]) -> list[Posed]:
        """The trials of these groups."""
        return [self._posed(self.candidates[number]) for number in numbers]

    def _posed(self, group: Group) -> Posed:
        references = _references(group, self._negatives.draw(group.pair, group.side))
        unusable = self.candidates.unusable[group.rows].tolist()
        texts = self._read(group.rows)
        replacements = self._replacements(group, texts)
        if self._donors is not None:
            alone = (self._donors[group.rows] < 0).tolist()
            unusable = [reason or (ALONE if lonely else None) for reason, lonely in zip(unusable, alone, strict=True)]
        places: dict[str | None, int] = {None: 0}
        for text, instead, reason in zip(texts, replacements, unusable, strict=True):
            for asked in (text, instead) if reason is None else ():
                places.setdefault(asked, len(places))
        anchor, *others = map(self._input, references)
        return Posed(
            trial=Trial(group.side, anchor, others, list(places)),
            group=group,
            names=[reference.name(self.index) for reference in references],
            with_columns=[places.get(text, 0) for text in texts],
            without_columns=[places.get(instead, 0) for instead in replacements],
            unusable=unusable,
        )

    def _replacements(self, group: Group, texts: list[str | None]) -> list[str | None]:
        """What the intervention puts in the place of each rationale."""
        if self._donors is not None:
            return self._read(self._donors[group.rows].tolist())
        if self.options.intervention == "shuffle":
            return [shuffled(text or "", self.options.seed) for text in texts]
        return [None] * len(texts)

    def _read(self, rows: list[int]) -> list[str | None]:
        """Texts of rows of the rationales table; of a negative one any."""
        return [self._texts[row].as_py() for row in rows]

    def _input(self, reference: _Reference) -> dict[str, Any]:
        if reference.place is None:
            return self._inputs[reference.column][reference.row]
        return given_parts(self._own_negatives[reference.row][reference.place].as_py())


class _Reference(NamedTuple):
    """An input of the pairs table: that of a side, or one of a pair's own negatives."""

    column: str
    row: int
    place: int | None = None

    def name(self, index: PairIndex) -> str:
        which = self.column if self.place is None else f"negative {self.place}"
        return f"the {which} of pair {index.ids[self.row]!r}"


def _references(group: Group, negatives: Negatives) -> list[_Reference]:
    """Of a trial's inputs: the anchor, its partner, its negatives."""
    other = other_side(group.side)
    own = [_Reference("negatives", group.pair, place) for place in negatives.own]
    return [
        _Reference(group.side, group.pair),
        _Reference(other, group.pair),
        *own,
        *(_Reference(other, row) for row in negatives.rows),
    ]
