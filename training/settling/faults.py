"""Find what of measured tables can't be trained on: broken inputs, and inputs and rationales that are too long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from mmemb_r1.training.settling.measure import Lengths

ON_ERROR = ("raise", "skip")
DEFAULT_MAX_SKIPPED = 0.01
_SHOWN = 3
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SettleOptions:
    """
    Say what is too long, and what becomes of rows that can't be trained on.

    Args:
        on_error: `"raise"` refuses the run and says what is wrong; `"skip"` leaves out pairs of which an input is
            broken or too long, and rationales that are too long, whose pairs stay.
        max_skipped: the largest share of a table's pairs that may be left out.
        max_input_tokens: tokens of an input's prompt (template, text, media), together with a rationale after it.
            Default: no limit.
        max_rationale_tokens: tokens of a rationale, or of a round of it. Default: no limit.

    Raises:
        ValueError: if an option is out of its range.
    """

    on_error: str = "raise"
    max_skipped: float = DEFAULT_MAX_SKIPPED
    max_input_tokens: int | None = None
    max_rationale_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error={self.on_error!r}; allowed: {', '.join(map(repr, ON_ERROR))}.")
        if not 0 <= self.max_skipped <= 1:
            raise ValueError(f"max_skipped={self.max_skipped}; allowed: a share from 0 to 1.")
        for name in ("max_input_tokens", "max_rationale_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}; allowed: whole numbers from 1 on.")

    def within(self, context: int | None) -> SettleOptions:
        """Make `context`, tokens that a model can read, the limit of inputs where none is set."""
        return self if self.max_input_tokens is not None else replace(self, max_input_tokens=context)


class Skipped(NamedTuple):
    """
    Say what is left out, and why.

    Attributes:
        table: its name, for messages.
        row: in the table, counted from 0.
        pair_id: of the pair; `None` where the table has no ids.
        side: the column, `"negatives 0"` for the first of a pair's negatives, or `"query rationale"`.
        reason: what is wrong.
        worker: of a rationale, where the table says it.
    """

    table: str
    row: int
    pair_id: str | None
    side: str
    reason: str
    worker: str | None = None


@dataclass
class Faults:
    """
    Hold what of one table can't be trained on.

    Attributes:
        table: its name.
        size: its number of rows.
        rows: `(D,)` rows that are to be left out, sorted.
        without: column of rationales -> `(W,)` rows, sorted, whose rationale in that column is to be left out.
        listed: a line for everything that is wrong.
        workers: of a table of rationales: worker -> how many it has, and how many of them are too long.
    """

    table: str
    size: int
    rows: Rows
    without: dict[str, Rows] = field(default_factory=dict)
    listed: list[Skipped] = field(default_factory=list)
    workers: dict[str, tuple[int, int]] = field(default_factory=dict)


def pair_faults(
    name: str,
    lengths: Lengths,
    sides: Mapping[str, str],
    options: SettleOptions,
    id_of: Callable[[int], str | None],
    after: Mapping[str, int] | None = None,
) -> Faults:
    """
    Find the pairs that can't be trained on, and the rationales in their table that are too long.

    Args:
        name: of the table.
        lengths: what was measured of it.
        sides: column of rationales -> column of the input that they are about.
        options: the limits.
        id_of: row -> `pair_id`.
        after: column -> tokens that will follow each of its prompts.
    """
    listed = [Skipped(name, row, id_of(row), part, reason) for row, part, reason in lengths.broken]
    limit = options.max_input_tokens
    inputs = [column for column in lengths.tokens if column not in sides]
    for column in inputs:
        if limit is not None:
            follows = (after or {}).get(column, 0)
            more = f" and {follows} that may follow" if follows else ""
            for row in np.flatnonzero(lengths.tokens[column] + follows > limit).tolist():
                reason = f"it has {lengths.tokens[column][row]} tokens{more}; allowed: max_input_tokens={limit}."
                listed.append(Skipped(name, row, id_of(row), column, reason))
    rows = _rows(listed)
    without = {}
    for column, side in sides.items():
        reasons = too_long(lengths, column, lengths.tokens[side], options)
        reasons = {row: reason for row, reason in reasons.items() if not _holds(rows, row)}
        without[column] = np.array(sorted(reasons), np.int64)
        listed += [Skipped(name, row, id_of(row), f"{side} rationale", reasons[row]) for row in sorted(reasons)]
    return Faults(name, len(lengths.keys), rows, without, sorted(listed, key=lambda one: (one.row, one.side)))


def rationale_faults(
    name: str,
    lengths: Lengths,
    column: str,
    before: npt.NDArray[np.int32],
    options: SettleOptions,
    of: Callable[[int], tuple[str, str]],
    workers: Sequence[str | None],
) -> Faults:
    """
    Find the rows of a table of rationales that are too long.

    Args:
        name: of the table.
        lengths: what was measured of it.
        column: the one that holds the rationales.
        before: `(N,)` tokens of the prompts that they follow.
        options: the limits.
        of: row -> the pair's id and the side.
        workers: `(N,)` who wrote them; empty where the table does not say it.
    """
    reasons = too_long(lengths, column, before, options)
    rows = np.array(sorted(reasons), np.int64)
    listed = []
    for row in rows.tolist():
        pair_id, side = of(row)
        worker = workers[row] if len(workers) else None
        listed.append(Skipped(name, row, pair_id, f"{side} rationale", reasons[row], worker))
    long, every = Counter(str(one.worker) for one in listed), Counter(map(str, workers))
    counts = {worker: (number, long[worker]) for worker, number in sorted(every.items())}
    return Faults(name, len(lengths.keys), rows, listed=listed, workers=counts)


def too_long(lengths: Lengths, column: str, before: npt.NDArray[np.int32], options: SettleOptions) -> dict[int, str]:
    """Find the rationales of a column that are too long, alone or after prompts of `(N,)` tokens: row -> why."""
    found: dict[int, str] = {}
    if (limit := options.max_input_tokens) is not None:
        own = lengths.tokens[column]
        for row in np.flatnonzero((own > 0) & (before + own > limit)).tolist():
            found[row] = (
                f"it has {own[row]} tokens after a prompt of {before[row]}; allowed: max_input_tokens={limit}."
            )
    if (limit := options.max_rationale_tokens) is not None:
        for row in np.flatnonzero(lengths.longest[column] > limit).tolist():
            found[row] = f"it has {lengths.longest[column][row]} tokens; allowed: max_rationale_tokens={limit}."
    return found


def check_faults(found: Sequence[Faults], options: SettleOptions, source: str) -> None:
    """
    Refuse tables with more faults than the options allow.

    Args:
        found: of each table.
        options: what is allowed.
        source: how to see all of them, for the message.

    Raises:
        ValueError: saying how many rows of which table can't be trained on, which for example, and how to go on.
    """
    wrong = [one for one in found if one.listed]
    if options.on_error == "raise" and wrong:
        raise ValueError(
            f"{' '.join(map(described, wrong))} Correct the tables, raise the limits, or leave such rows out with "
            f"on_error='skip' (of a table's pairs at most the share max_skipped={options.max_skipped:g}). {source}"
        )
    for one in found:
        # rationales that are too long leave their pairs to train on
        share = 0.0 if one.workers or not len(one.rows) else len(one.rows) / one.size
        if share > options.max_skipped:
            raise ValueError(
                f"{described(one)} That is a share of {share:.4g}, more than max_skipped={options.max_skipped:g}. "
                f"Correct the table, or allow more if it is meant to be so. {source}"
            )
        if one.size and len(one.rows) == one.size:
            raise ValueError(f"{described(one)} Nothing is left of it. {source}")


def unreadable(name: str, reason: str) -> ValueError:
    """Make the error about an input, named `name`, that can't be read while training, though it could before."""
    return ValueError(
        f"{name} can't be read: {reason} Before the first step it could, so its file was changed or is gone. Put it "
        "back, run `mmemb-r1 pairs check`, which lists all that is broken, and give the same command again: it goes "
        "on from the last checkpoint."
    )


def described(faults: Faults) -> str:
    """Sum up what is wrong with a table, with the first few rows."""
    pairs = [one for one in faults.listed if not one.side.endswith(" rationale")]
    rationales = [one for one in faults.listed if one.side.endswith(" rationale")]
    sentences = []
    if pairs:
        sentences.append(
            f"{len(faults.rows)} of the {faults.size} pairs of {faults.table} can't be trained on: {_examples(pairs)}"
        )
    if rationales:
        sentences.append(
            f"{len(rationales)} rationales of {faults.table} are too long{_by_worker(faults)}: {_examples(rationales)}"
        )
    return " ".join(sentences)


def _by_worker(faults: Faults) -> str:
    shares = [
        f"{long / number:.1%} of {worker}'s ({long} of {number})"
        for worker, (number, long) in faults.workers.items()
        if long and worker != str(None)
    ]
    return f" ({', '.join(shares)})" if shares else ""


def _examples(listed: Sequence[Skipped]) -> str:
    shown = []
    for one in listed[:_SHOWN]:
        pair = "" if one.pair_id is None else f", pair {one.pair_id!r}"
        shown.append(f"row {one.row}{pair}, {one.side}: {one.reason}")
    return " ".join(shown) + (f" And {len(listed) - _SHOWN} more." if len(listed) > _SHOWN else "")


def _rows(listed: Sequence[Skipped]) -> Rows:
    return np.unique(np.array([one.row for one in listed], dtype=np.int64))


def _holds(rows: Rows, row: int) -> bool:
    place = int(np.searchsorted(rows, row))
    return place < len(rows) and int(rows[place]) == row
