"""Import one source, shard by shard, from where an earlier run stopped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmemb_r1.runs import record_run
from mmemb_r1.tables.columns import ColumnMap, columns_hint
from mmemb_r1.tables.rows import read_rows
from mmemb_r1.training.importing.files import SourceFile
from mmemb_r1.training.importing.formats import BY_COLUMNS, find_format
from mmemb_r1.training.importing.media import MediaPaths
from mmemb_r1.training.importing.pair import Pair, RowError, as_pair, pair_id_of
from mmemb_r1.training.importing.shards import (
    Shard,
    ShardPaths,
    pair_row,
    rationale_rows,
    read_record,
    shards_of,
    write_shard,
)

FIRST_ROWS = 1000  # a source of which none of these is of use is refused
DEFAULT_SHARD_SIZE = 10_000
RUN_FILE = "run.json"
_OTHERS = " Choose another format, or the files that are of this one: --files PATTERN."


@dataclass(frozen=True)
class ImportJob:
    """Say what is imported, and how; see [`import_pairs`]. `facts` make it the same import as another."""

    name: str
    output: Path
    media: Path | None = None
    limit: int | None = None
    tasks: tuple[str, ...] | None = None
    answers: str = "join"
    columns: ColumnMap | None = None
    decode: bool = False
    shard_size: int = DEFAULT_SHARD_SIZE
    facts: Mapping[str, Any] = field(default_factory=dict)


def import_source(
    job: ImportJob, source: SourceFile, number: int, tick: Callable[[Shard], None] = lambda shard: None
) -> None:
    """
    Import what is left of a source.

    Args:
        job: how.
        source: what.
        number: of the source.
        tick: is called with each shard that was written.

    Raises:
        ValueError: if the source lacks a column, none of its first rows is of use, or it is damaged.
    """
    _SourceImport(job, source, number).run(tick)


class _SourceImport:
    """Holds the state of importing one source."""

    def __init__(self, job: ImportJob, source: SourceFile, number: int) -> None:
        self.job, self.source, self.number = job, source, number
        self.form = find_format(job.name, job.columns)
        self.media = MediaPaths(job.media or Path(source.place).parent, job.output, job.decode)
        self.index, self.start, self.over, self.good = 0, 0, False, 0
        self.position = 0  # bytes of the source that were read, about
        self.first: tuple[int, str] | None = None  # the first row that was skipped, and why
        self.by_task: Counter[str] = Counter()  # pairs that were written
        for paths in shards_of(job.output, number):
            self._count(read_record(paths.record))
        self._begin()

    def run(self, tick: Callable[[Shard], None]) -> None:
        if self.over:
            return
        checked = self.start > 0
        for place, row in enumerate(read_rows(Path(self.source.place), self.start, self._read_to), self.start):
            if isinstance(row, Mapping):
                row = self.form.columns(row)
                if not checked:
                    self._check_columns(row)
                    checked = True
            self._add(place, row)
            self.shard.end = place + 1
            if self.shard.end == FIRST_ROWS:
                self._check_first()
            if self._is_enough():
                break
            if self.shard.end - self.start >= self.job.shard_size:
                self._flush(tick)
        if self.shard.end < FIRST_ROWS:
            self._check_first()
        self.shard.last = True
        self._flush(tick)

    def _read_to(self, position: int) -> None:
        self.shard.position = position

    def _begin(self) -> None:
        self.shard = Shard(end=self.start, position=self.position)
        self.pairs: list[dict[str, Any]] = []
        self.rationales: list[dict[str, Any]] = []

    def _flush(self, tick: Callable[[Shard], None]) -> None:
        # not before: options may be corrected until there are results
        record_run(self.job.output / RUN_FILE, self.job.facts, what=f"the import in {self.job.output}")
        write_shard(ShardPaths(self.job.output, self.number, self.index), self.shard, self.pairs, self.rationales)
        tick(self.shard)
        self._count(self.shard)
        self._begin()

    def _count(self, shard: Shard) -> None:
        """Go on after a shard."""
        self.index, self.start, self.over = self.index + 1, shard.end, shard.last
        self.position = shard.position
        for task, counts in shard.tasks.items():
            self.by_task[task] += counts.written
            self.good += counts.written + counts.left_out
        if self.first is None and shard.skipped:
            row, _, reason = shard.skipped[0]
            self.first = row, reason

    def _add(self, place: int, row: Any) -> None:
        """Import the pairs of a row."""
        task = self.source.task
        try:
            found = self._pairs(row)
        except RowError as error:
            self._skip(place, task, error)
            return
        for given in found:
            try:
                pair = as_pair(given, task)
            except RowError as error:
                named = given.get("task") if isinstance(given, Mapping) else None
                self._skip(place, named if isinstance(named, str) and named else task, error)
                continue
            if self._is_wanted(pair.task):
                self._keep(place, pair)
            else:
                counts = self.shard.of(pair.task)
                counts.read += 1
                counts.left_out += 1

    def _is_wanted(self, task: str) -> bool:
        here = self.shard.tasks.get(task)
        written = self.by_task[task] + (here.written if here else 0)
        return (self.job.tasks is None or task in self.job.tasks) and (
            self.job.limit is None or written < self.job.limit
        )

    def _keep(self, place: int, pair: Pair) -> None:
        pair_id = pair_id_of(self.form.source, pair)
        try:
            pair.query = self.media.placed(pair.query, "query")
            pair.target = self.media.placed(pair.target, "target")
            pair.negatives = [self.media.placed(one, "negatives") for one in pair.negatives]
        except RowError as error:
            self._skip(place, pair.task, error)
            return
        rationales = rationale_rows(pair_id, pair, self.form.source, self.job.answers)
        self.pairs.append(pair_row(pair_id, pair))
        self.rationales += rationales
        self.shard.written.append((place, pair.task, len(rationales)))
        counts = self.shard.of(pair.task)
        counts.read += 1
        counts.written += 1
        counts.rationales += len(rationales)

    def _skip(self, place: int, task: str, error: RowError) -> None:
        counts = self.shard.of(task)
        counts.read += 1
        if self.job.tasks is not None and task not in self.job.tasks:
            counts.left_out += 1
            return
        counts.skip(error.kind)
        self.shard.skipped.append((place, error.side, error.reason))

    def _pairs(self, row: Any) -> Sequence[Any]:
        if isinstance(row, ValueError):
            raise RowError("unreadable", str(row)) from row
        if not isinstance(row, Mapping):
            raise RowError("of another form", f"it is {row!r:.80}; allowed: an object. Correct it.")
        try:
            found = self.form.convert(row, Path(self.source.name).stem)
        except RowError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:  # of anybody's code, about any row
            reason = f"its format can't read it ({type(error).__name__}: {error}). Correct the row or the format."
            raise RowError("of another form", reason) from error
        return found if isinstance(found, list | tuple) else [found]

    def _is_enough(self) -> bool:
        return (
            self.job.limit is not None and self.job.tasks is not None and not any(map(self._is_wanted, self.job.tasks))
        )

    def _check_columns(self, row: Mapping[str, Any]) -> None:
        needs = self.form.needs
        if needs and not any(all(name in row for name in names) for names in needs):
            missing = [name for name in needs[0] if name not in row]
            wanted = ", or ".join(", ".join(names) for names in needs)
            hint = columns_hint(list(map(str, row))) if self.job.name in BY_COLUMNS else _OTHERS
            raise ValueError(
                f"{self.source.name} has no column {missing[0]!r}; the format {self.job.name!r} needs {wanted}. It "
                f"has: {', '.join(map(str, row)) or 'none'}.{hint}"
            )

    def _check_first(self) -> None:
        good = self.good + sum(counts.written + counts.left_out for counts in self.shard.tasks.values())
        if not good and (first := self.first or self._first_here()):
            raise ValueError(
                f"{self.source.name}: none of its first {self.shard.end:,} rows can be imported. Row {first[0]}, "
                f"counted from 0: {first[1]} (To leave a task out, name the others with --tasks.)"
            )

    def _first_here(self) -> tuple[int, str] | None:
        return (self.shard.skipped[0][0], self.shard.skipped[0][2]) if self.shard.skipped else None
