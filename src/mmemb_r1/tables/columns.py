"""Give the columns of any table of pairs our names and forms: which column is what, texts as inputs, ids of pairs."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from mmemb_r1.content import stored_digest
from mmemb_r1.modeling.inputs_mmemb_r1 import PARTS
from mmemb_r1.modeling.options_mmemb_r1 import nearest_name
from mmemb_r1.tables.paths import whole_array

if TYPE_CHECKING:
    import pyarrow

INPUTS = ("query", "target")
LISTED = "negatives"
TEXTS = ("pair_id", "task", "complexity", "entity", "candidate_set", "target_id")
RATIONALES = ("query_rationale", "target_rationale")
COLUMNS = (*INPUTS, LISTED, *TEXTS, *RATIONALES)  # that a table of pairs may have
_NUMBERED = re.compile(r"negative_(\d+)")  # columns that are folded into `negatives` unasked
_FILE_NAMES = re.compile(r"(?:(.+)_)?file_name(s?)")  # columns of the metadata of pictures
_USUAL = {  # what others call ours; only for hints, never taken unasked
    "query": ("anchor", "query", "question", "sentence1", "sentence_A", "text1", "premise", "image"),
    "target": ("positive", "pos", "document", "answer", "passage", "sentence2", "sentence_B", "text2", "caption"),
    "negatives": ("negative", "negatives", "neg", "hard_negatives"),
}

_STRINGS = ("string", "large_string", "string_view")

logger = logging.getLogger(__name__)
ColumnMap = Mapping[str, str | Sequence[str]]
_Column = tuple[Any, Any]  # the values (an Arrow array), and their feature in the words of `datasets`


def parse_columns(given: Sequence[str] | None) -> dict[str, str] | None:
    """
    Read `OURS=THEIRS`, as `--columns` takes it.

    >>> parse_columns(["query=anchor", "negatives=neg_a,neg_b"])
    {'query': 'anchor', 'negatives': 'neg_a,neg_b'}

    Raises:
        ValueError: if one has no `=`, or a name of ours is there twice.
    """
    if given is None:
        return None
    found: dict[str, str] = {}
    for one in given:
        ours, equals, theirs = one.partition("=")
        if not (ours and equals and theirs):
            raise ValueError(f"columns: {one!r} is none; allowed: OURS=THEIRS, say query=anchor target=positive")
        if ours in found:
            raise ValueError(f"columns: {ours!r} is there twice, of {found[ours]!r} and {theirs!r}; leave out one")
        found[ours] = theirs
    return found


def columns_flags(columns: ColumnMap | None) -> list[str]:
    """
    Write columns as `--columns` takes them; nothing for none.

    >>> columns_flags({"query": "anchor"})
    ['--columns', 'query=anchor']
    """
    told = [f"{ours}={','.join(column_names(theirs))}" for ours, theirs in (columns or {}).items()]
    return ["--columns", *told] if told else []


def columns_hint(names: Sequence[str]) -> str:
    """
    Say for a table without ours how to name its columns, the end of an error: exactly, if the names are usual ones.

    >>> columns_hint(["anchor", "positive", "negative"])
    ' If they have other names, say which: --columns query=anchor target=positive negatives=negative'
    """
    found = {ours: next((name for name in usual if name in names), None) for ours, usual in _USUAL.items()}
    known = {ours: theirs for ours, theirs in found.items() if theirs and ours != theirs}
    if not (found["query"] and found["target"] and known):
        known = {"query": "THEIRS", "target": "THEIRS"}
    return f" If they have other names, say which: {' '.join(columns_flags(known))}"


def column_names(theirs: str | Sequence[str]) -> list[str]:
    """List the columns that one of a map names."""
    return theirs.split(",") if isinstance(theirs, str) else list(theirs)


def numbered_columns(names: Iterable[str]) -> list[str]:
    """
    List the columns that are folded into `negatives` unasked, in the order of their numbers.

    >>> numbered_columns(["negative_10", "query", "negative_2"])
    ['negative_2', 'negative_10']
    """
    found = {name: int(match[1]) for name in names if (match := _NUMBERED.fullmatch(name))}
    return sorted(found, key=found.__getitem__)


def picture_column(name: str) -> tuple[str, bool] | None:
    """
    Name the column that one of file names in the metadata of pictures becomes, as `datasets` does, and tell whether it
    holds several in a row; `None` for any other column.

    >>> picture_column("file_name"), picture_column("back_file_names"), picture_column("caption")
    (('image', False), ('back', True), None)
    """
    match = _FILE_NAMES.fullmatch(name)
    return None if match is None else (match[1] or f"image{match[2]}", bool(match[2]))


class ColumnError(ValueError):
    """Report columns that a table does not have, or that do not go together; what table it is, is not known there."""


class PairForm:
    """
    Give a table of pairs our columns.

    * A column of texts is one of inputs `{"text": ...}`, never of paths; one of pictures or videos (features of
      `datasets`) of inputs `{"image": ...}` or `{"video": ...}`. Objects with the keys of an input stay as they are.
    * `negatives` becomes a list of inputs, whether it was one or a single input; so do several columns, `negative_1`,
      `negative_2` ... or those that are named.
    * `pair_id` is a text. Where there is none it is made: a digest of query and target (texts, pictures by their bytes
      or, where a table has paths, by the path as it is written), the same one in whatever kind of file the pair is.
      Pairs that hold the same get `-2`, `-3` ... after it, in their order, and a warning tells it.

    Args:
        columns: name of ours (`COLUMNS`; or a part of an input, `query.image`) -> column that is it; for `negatives`
            several, in a list or with commas between them. A column of ours that is not named stays, others too.
        unless_ours: whether `columns` are nothing to a table that has `query` and none of the columns that they name.
        of_pictures: whether the table is the metadata of pictures: its columns `file_name`, `X_file_name` and
            `X_file_names` are the columns `image` and `X`, of pictures at these paths.

    Raises:
        ValueError: if a name of ours is not known, or both an input and a part of it are named.
    """

    def __init__(self, columns: ColumnMap | None = None, unless_ours: bool = False, of_pictures: bool = False) -> None:
        self.columns = {ours: column_names(theirs) for ours, theirs in (columns or {}).items()}
        self.unless_ours, self.of_pictures = unless_ours, of_pictures
        self.key = json.dumps([self.columns, unless_ours, of_pictures])
        known = (*COLUMNS, *(f"{side}.{part}" for side in INPUTS for part in PARTS))
        for ours, theirs in self.columns.items():
            if ours not in known:
                near = nearest_name(ours, known)
                raise ValueError(f"columns: {ours!r} is no column of ours; allowed: {', '.join(known)}{near}")
            if len(theirs) != 1 and ours != LISTED:
                raise ValueError(f"columns: {ours!r} is one column, not {len(theirs)} ({', '.join(theirs)})")
            if (whole := ours.partition(".")[0]) != ours and whole in self.columns:
                raise ValueError(f"columns: {whole!r} and {ours!r} name the same; leave out one")

    def schema(self, stored: pyarrow.Schema) -> pyarrow.Schema:
        """Tell the columns of the table that is made of one with these; errors are those of the map."""
        return self.reader()(stored.empty_table()).schema

    def reader(self) -> Callable[[pyarrow.Table], pyarrow.Table]:
        """Begin a table: what is returned is called with its rows, some at a time, in their order."""
        ids = _PairIds()

        def formed(rows: pyarrow.Table) -> pyarrow.Table:
            given = _columns_of(rows)
            found = self._renamed(_with_pictures(given) if self.of_pictures else given)
            for names, change in ((INPUTS, _as_input), ((LISTED,), _as_list), (TEXTS, _as_text)):
                found |= {name: change(found[name]) for name in names if name in found}
            if "query" in found and "pair_id" not in found:
                found = {"pair_id": ids([found[name] for name in INPUTS if name in found]), **found}
            same = found.keys() == given.keys() and all(found[name] is given[name] for name in found)
            return rows if same else _table(found)

        return formed

    def _renamed(self, given: Mapping[str, _Column]) -> dict[str, _Column]:
        used = {name for theirs in self.columns.values() for name in theirs}
        columns = {} if self.unless_ours and "query" in given and not used & given.keys() else self.columns
        for ours, theirs in columns.items():
            if missing := [name for name in theirs if name not in given]:
                raise ColumnError(
                    f"columns: there is no column {missing[0]!r}, which would be {ours!r}; there are: "
                    f"{', '.join(given) or 'none'}{nearest_name(missing[0], list(given))}"
                )
        found = {name: column for name, column in given.items() if name not in used}
        parts: dict[str, dict[str, _Column]] = {}
        for ours, theirs in columns.items():
            side, _, part = ours.partition(".")
            if part:
                parts.setdefault(side, {})[part] = _as_part(part, given[theirs[0]])
            elif ours == LISTED and len(theirs) > 1:
                found[ours] = _folded([given[name] for name in theirs])
            else:
                found[ours] = given[theirs[0]]
        for side, own in parts.items():
            found[side] = _struct(own)
        if LISTED not in found and (numbered := numbered_columns(found)):
            found[LISTED] = _folded([found.pop(name) for name in numbered])
        return found


class _PairIds:
    """Make the ids of a table's pairs, some rows at a time: of what they hold, each one once."""

    def __init__(self) -> None:
        self._seen: set[int] = set()  # not the ids themselves, which take three times the memory
        self._again: Counter[str] = Counter()

    def __call__(self, sides: Sequence[_Column]) -> _Column:
        import pyarrow
        from datasets import Value

        rows = zip(*(values.to_pylist() for values, _ in sides), strict=True)
        ids = [self._unique(stored_digest(dict(zip(INPUTS, map(_content, row), strict=False)))) for row in rows]
        return pyarrow.array(ids, pyarrow.string()), Value("string")

    def _unique(self, digest: bytes) -> str:
        number, name = int.from_bytes(digest[:8], "little"), digest.hex()
        if number not in self._seen:
            self._seen.add(number)
            return name
        if not self._again:
            logger.warning(
                "A pair is there twice, with the same query and target, and has no id: its second one gets the id "
                "%s-2, and others that are there again likewise. `mmemb-r1 pairs check` counts them.",
                name,
            )
        self._again[name] += 1
        return f"{name}-{self._again[name] + 1}"


def _content(value: Any) -> Any:
    """
    Name a stored picture by its bytes or, without them, its path, as where a table has nothing else.

    >>> _content({"image": [{"bytes": None, "path": "a.png"}, {"bytes": b"...", "path": "b.png"}]})
    {'image': ['a.png', b'...']}
    """
    if isinstance(value, list):
        return [_content(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"bytes", "path"}:
        return value["bytes"] or value["path"]
    return {key: _content(part) for key, part in value.items()}


def _columns_of(rows: pyarrow.Table) -> dict[str, _Column]:
    from datasets import Features

    features = Features.from_arrow_schema(rows.schema)
    return {name: (rows[name].combine_chunks(), features[name]) for name in rows.column_names}


def _table(columns: Mapping[str, _Column]) -> pyarrow.Table:
    import pyarrow
    from datasets import Features

    schema = Features({name: feature for name, (_, feature) in columns.items()}).arrow_schema
    arrays = [values.cast(kind) for (values, _), kind in zip(columns.values(), schema.types, strict=True)]
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def _with_pictures(given: Mapping[str, _Column]) -> dict[str, _Column]:
    """Turn the columns of names of files into those of pictures, as `datasets` names them."""
    import pyarrow
    from datasets import Image, List

    found: dict[str, _Column] = {}
    for name, (values, feature) in given.items():
        if (named := picture_column(name)) is not None:
            name, several = named
            lists = whole_array(values) if several else None
            texts = values if lists is None else lists.values
            parts = [pyarrow.nulls(len(texts), pyarrow.binary()), texts.cast(pyarrow.string())]
            pictures = pyarrow.StructArray.from_arrays(parts, names=["bytes", "path"], mask=texts.is_null())
            values, feature = pictures, Image()
            if lists is not None:
                values = type(lists).from_arrays(lists.offsets, pictures, mask=lists.is_null())
                feature = List(Image())
        if name in found:
            raise ColumnError(f"two columns of the metadata of pictures are {name!r}; rename or leave out one")
        found[name] = (values, feature)
    return found


def _part_of(feature: Any) -> str | None:
    """Tell which part of an input a column's values are, by its feature; `None` for what is none, or an input."""
    from datasets import ClassLabel, Image, LargeList, List, Value, Video

    if isinstance(feature, ClassLabel) or (isinstance(feature, Value) and feature.dtype in _STRINGS):
        return "text"
    if isinstance(feature, Image) or (isinstance(feature, dict) and feature.keys() == {"bytes", "path"}):
        return "image"
    if isinstance(feature, Video):
        return "video"
    if isinstance(feature, List | LargeList) and _part_of(feature.feature) == "image":
        return "image"
    return None


def _as_input(column: _Column) -> _Column:
    part = _part_of(column[1])
    return column if part is None else _struct({part: _as_part(part, column)})


def _as_part(part: str, column: _Column) -> _Column:
    return _as_text(column) if part in ("text", "instruction") else column


def _as_text(column: _Column) -> _Column:
    """Turn whole numbers, and classes, which `datasets` stores as such, into texts."""
    import pyarrow
    from datasets import ClassLabel, Value

    values, feature = column
    if isinstance(feature, ClassLabel) and feature.names:
        known = pyarrow.compute.if_else(pyarrow.compute.greater_equal(values, 0), values, None)
        return pyarrow.array(feature.names, pyarrow.string()).take(known), Value("string")
    if pyarrow.types.is_integer(values.type):
        return values.cast(pyarrow.string()), Value("string")
    return column


def _struct(parts: Mapping[str, _Column]) -> _Column:
    """Put parts together as inputs; null where a row has none of them."""
    import pyarrow
    import pyarrow.compute

    arrays = [values for values, _ in parts.values()]
    empty = reduce(pyarrow.compute.and_, (values.is_null() for values in arrays))
    return (
        pyarrow.StructArray.from_arrays(arrays, names=list(parts), mask=empty),
        {part: feature for part, (_, feature) in parts.items()},
    )


def _as_list(column: _Column) -> _Column:
    """Make the negatives of each row a list of inputs."""
    from datasets import LargeList, List

    values, feature = column
    if not isinstance(feature, List | LargeList):
        return column if _is_null(column) else _folded([column])
    whole = whole_array(values)
    inputs, inner = _as_input((whole.values, feature.feature))
    if inner is feature.feature:
        return column
    return type(whole).from_arrays(whole.offsets, inputs, mask=whole.is_null()), type(feature)(inner)


def _folded(columns: Sequence[_Column]) -> _Column:
    """Put columns together as one of lists, without what is null in a row."""
    import numpy as np
    import pyarrow
    from datasets import List

    inputs = [_as_input(column) for column in columns if not _is_null(column)] or list(columns[:1])
    if other := [values.type for values, _ in inputs if values.type != inputs[0][0].type]:
        raise ColumnError(f"columns: those of negatives hold {inputs[0][0].type} and {other[0]}; all need the same")
    size, width = len(inputs[0][0]), len(inputs)
    stacked = pyarrow.concat_arrays([values for values, _ in inputs])
    places = np.arange(width * size).reshape(width, size).T  # (rows, columns)
    there = stacked.is_valid().to_numpy(zero_copy_only=False)[places]
    offsets = np.concatenate([[0], there.sum(axis=1).cumsum()])
    taken = stacked.take(pyarrow.array(places[there]))
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets, pyarrow.int32()), taken), List(inputs[0][1])


def _is_null(column: _Column) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_null(column[0].type))
