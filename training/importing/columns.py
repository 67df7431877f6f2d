"""Read files of one's own, or a data set of the Hub, by the names of their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmemb_r1.modeling.inputs_mmemb_r1 import PARTS
from mmemb_r1.training.importing.pair import PAIR_KEYS, SIDES

TARGETS = (*PAIR_KEYS, *(f"{side}.{part}" for side in SIDES for part in PARTS))


@dataclass(frozen=True)
class ColumnMap:
    """
    Make a pair of a row by a map of columns.

    Args:
        columns: ours -> theirs, ours of `TARGETS`: `query.image` is a part of the query. Default: the same names.
    """

    columns: tuple[tuple[str, str], ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that a row has to have."""
        return tuple(dict.fromkeys(theirs for _, theirs in self.columns)) or SIDES

    def __call__(self, row: Mapping[str, Any], file: str) -> dict[str, Any]:
        """Make a pair of a row, for `as_pair`."""
        if not self.columns:
            return {key: row[key] for key in PAIR_KEYS if key in row}
        pair: dict[str, Any] = {}
        for ours, theirs in self.columns:
            side, dot, part = ours.partition(".")
            if dot:
                pair.setdefault(side, {})[part] = row.get(theirs)
            else:
                pair[ours] = row.get(theirs)
        return pair


def column_map(texts: Sequence[str]) -> ColumnMap:
    """
    Parse `OURS=THEIRS` of `--columns`.

    Raises:
        ValueError: if a name is not known, there twice, or a side is missing.

    >>> column_map(["query.text=question", "query.image=file_name", "target=answer"]).needs
    ('question', 'file_name', 'answer')
    """
    pairs = []
    for text in texts:
        ours, equals, theirs = text.partition("=")
        if not equals or not theirs or ours not in TARGETS:
            raise ValueError(
                f"{text!r} is no map of a column; write OURS=THEIRS, for example query=anchor. OURS is one of "
                f"{', '.join(TARGETS)}."
            )
        pairs.append((ours, theirs))
    names = [ours for ours, _ in pairs]
    for name in names:
        if names.count(name) > 1 or (name in SIDES and any(other.startswith(f"{name}.") for other in names)):
            raise ValueError(f"{name!r} is mapped twice; name each column of ours, or the parts of a side, once.")
    if missing := [side for side in SIDES if names and side not in {name.partition(".")[0] for name in names}]:
        raise ValueError(f"no column is mapped to {missing[0]!r}; a pair needs both: {missing[0]}=THEIRS.")
    return ColumnMap(tuple(pairs))
