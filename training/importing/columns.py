"""Read files of one's own, or a data set of the Hub, by the names of their columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmemb_r1.tables.columns import ColumnMap, PairForm, numbered_columns, picture_column
from mmemb_r1.training.importing.pair import PAIR_KEYS, SIDES


class OwnColumns:
    """
    Make pairs of rows by a map of columns, as [`PairForm`] does of a whole table, which knows no row to be skipped.

    Args:
        columns: ours -> theirs. Default: the same names.

    Raises:
        ValueError: if a name of ours is not known, or both an input and a part of it are named.
    """

    def __init__(self, columns: ColumnMap | None = None) -> None:
        self.columns = PairForm(columns).columns
        if unknown := [ours for ours in self.columns if ours.partition(".")[0] not in PAIR_KEYS]:
            raise ValueError(f"columns: {unknown[0]!r} is not imported; allowed: {', '.join(PAIR_KEYS)}")

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that a row has to have."""
        mapped = {ours.partition(".")[0] for ours in self.columns}
        theirs = [name for names in self.columns.values() for name in names]
        return tuple(dict.fromkeys([*theirs, *(side for side in SIDES if side not in mapped)]))

    def __call__(self, row: Mapping[str, Any], file: str) -> dict[str, Any]:
        """Make a pair of a row, for `as_pair`."""
        used = {name for names in self.columns.values() for name in names}
        pair: dict[str, Any] = {key: row[key] for key in PAIR_KEYS if key in row and key not in used}
        numbered = numbered_columns(name for name in row if name not in used)
        if numbered and "negatives" not in pair:
            pair["negatives"] = [row[name] for name in numbered]
        for ours, theirs in self.columns.items():
            side, dot, part = ours.partition(".")
            values = [row.get(name) for name in theirs]
            if dot:
                value = values[0]
                is_picture = part == "image" and isinstance(value, Mapping) and set(value) == {"image"}
                pair.setdefault(side, {})[part] = value["image"] if is_picture else value  # type: ignore[index]
            else:
                pair[ours] = values if len(values) > 1 else values[0]
        return pair


def picture_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """
    Give a row of the metadata of pictures the columns that `datasets` gives it.

    >>> picture_columns({"file_name": "a.png", "back_file_names": ["b.png"], "caption": "A flag."})
    {'image': {'image': ['a.png']}, 'back': {'image': ['b.png']}, 'caption': 'A flag.'}
    """
    found = {}
    for name, value in row.items():
        named = picture_column(name)
        if named is None or value is None:
            found[name] = value
        else:
            column, several = named
            found[column] = {"image": value if several else [value]}
    return found
