"""Check what a format makes of a row: one pair, with its rationales, in the form of our tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from mmemb_r1.modeling.inputs_mmemb_r1 import PARTS
from mmemb_r1.training.importing.text import thought_parts

SIDES = ("query", "target")
PAIR_KEYS = (*SIDES, "negatives", "task", "pair_id", *(f"{side}_rationale" for side in SIDES))
_PATHS = "a path, a list of paths, or nothing"


class RowError(ValueError):
    """
    Say why a row can't be imported.

    Attributes:
        kind: a few words by which such rows are counted.
        side: of the pair, or `"row"`.
        reason: a sentence for this one, which says what to do.
    """

    def __init__(self, kind: str, reason: str, side: str = "row") -> None:
        super().__init__(reason)
        self.kind, self.side, self.reason = kind, side, reason


@dataclass
class Pair:
    """
    Hold one pair.

    Attributes:
        task: its task.
        query, target: inputs with the keys `PARTS`: `image` and `video` are lists, of paths or of stored pictures
            `{"bytes", "path"}`; several pictures are the frames of one video.
        negatives: such inputs.
        rationales: side -> the parts of its rationale, of which the last one is the answer if there are several.
        cut: sides whose rationale was cut off.
        pair_id: the row's own; `None` where it has none.
    """

    task: str
    query: dict[str, Any]
    target: dict[str, Any]
    negatives: list[dict[str, Any]] = field(default_factory=list)
    rationales: dict[str, list[str]] = field(default_factory=dict)
    cut: frozenset[str] = frozenset()
    pair_id: str | None = None

    def content(self) -> Any:
        """Return all that the row says, with paths as they stand there, for its id; pictures in it as digests."""
        return _hashable([self.task, self.query, self.target, self.negatives, self.rationales])


def as_pair(given: Any, task: str) -> Pair:
    """
    Check what a format made of a row.

    Args:
        given: a mapping with the keys `PAIR_KEYS`. An input is a text, a stored picture, or a mapping with the keys
            `PARTS`.
        task: where the row names none.

    Raises:
        RowError: if a part is missing or of another type.
    """
    if not isinstance(given, Mapping):
        raise RowError("of another form", f"its format made {type(given).__name__} of it; allowed: a dict.")
    if unknown := [key for key in given if key not in PAIR_KEYS]:
        raise RowError(
            "of another form", f"its format gives it the key {unknown[0]!r:.80}; allowed: {', '.join(PAIR_KEYS)}."
        )
    sides = {}
    for side in SIDES:
        found = checked_input(given.get(side), side)
        if found is None:
            raise RowError(f"no {side}", f"it has no {side}: no text, picture or video; leave the row out.", side)
        sides[side] = found
    rationales, cut = {}, set()
    for side in SIDES:
        text = given.get(f"{side}_rationale")
        if text is not None and text != "":
            parts, is_cut = _parts_of(text, f"{side} rationale")
            if parts:
                rationales[side] = parts
                cut |= {side} if is_cut else set()
    negatives = given.get("negatives")
    negatives = list(negatives) if isinstance(negatives, Sequence) and not isinstance(negatives, str) else [negatives]
    own, named = given.get("pair_id"), given.get("task")
    return Pair(
        task=task if named in (None, "") else _name(named, "task"),
        negatives=[found for one in negatives if (found := checked_input(one, "negatives")) is not None],
        rationales=rationales,
        cut=frozenset(cut),
        pair_id=None if own in (None, "") else _name(own, "pair_id"),
        **sides,
    )


def _parts_of(value: Any, side: str) -> tuple[list[str], bool]:
    """Split a rationale; a list of texts is split already."""
    if isinstance(value, list):
        return [part for part in (_text(one, side).strip() for one in value) if part], False
    return thought_parts(_text(value, side))


def checked_input(value: Any, side: str) -> dict[str, Any] | None:
    """Make an input of a text, a stored picture or a mapping of parts; `None` where nothing is in it."""
    if isinstance(value, Mapping) and value and set(value) <= {"bytes", "path"}:
        value = {"image": value}
    elif value is None or isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, Mapping) or (unknown := [key for key in value if key not in PARTS]):
        what = f"is {value!r:.80}" if not isinstance(value, Mapping) else f"has the unknown key {unknown[0]!r:.80}"
        raise RowError(
            "of another form", f"its {side} {what}; allowed: text, a picture, or a dict of {', '.join(PARTS)}.", side
        )
    parts: dict[str, Any] = {}
    for key in ("text", "instruction"):
        text = value.get(key)
        parts[key] = None if text is None or not _text(text, side).strip() else text
    for key in ("image", "video"):
        parts[key] = media_of(value.get(key), side, key)
    return parts if any(parts[key] for key in ("text", "image", "video")) else None


def media_of(value: Any, side: str, kind: str) -> list[Any]:
    """List pictures or videos, without those that are none: `""`, and stored ones that are empty."""
    found = []
    for one in value if isinstance(value, list | tuple) else [value]:
        stored = isinstance(one, Mapping) and set(one) <= {"bytes", "path"}
        if stored and not one.get("bytes"):
            one, stored = one.get("path"), False
        if one is None or (isinstance(one, str) and not one.strip()):
            continue
        if not stored and not isinstance(one, str):
            raise RowError("of another form", f"its {side} {kind} is {value!r:.80}; allowed: {_PATHS}.", side)
        found.append(one if stored else _text(one, side))
    return found


def _name(value: Any, key: str) -> str:
    """Take a text, or a whole number as its digits; anything else, say NaN, would give many rows one name."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole and not isinstance(value, str):
        raise RowError("of another form", f"its {key} is {value!r:.80}; allowed: text or a whole number.")
    return _text(str(value), key)


def _text(value: Any, side: str) -> str:
    if not isinstance(value, str):
        raise RowError("of another form", f"its {side} is {value!r:.80}; allowed: text.", side)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError("of another form", f"its {side} holds half a character; correct the text.", side) from error
    return value


def pair_id_of(source: str, pair: Pair) -> str:
    """Make the id of a pair: its own, or one of its content, whatever its place and the folder of its pictures."""
    if pair.pair_id is not None:
        return pair.pair_id
    text = json.dumps(pair.content(), sort_keys=True)
    return f"{source}-{blake2b(text.encode(), digest_size=16).hexdigest()}"


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _hashable(part) for key, part in value.items() if part not in (None, [])}
    if isinstance(value, list):
        return [_hashable(part) for part in value]
    return blake2b(value, digest_size=16).hexdigest() if isinstance(value, bytes) else value
