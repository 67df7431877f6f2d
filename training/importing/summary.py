"""Tell what an import read, wrote and skipped, by task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mmemb_r1.training.importing.shards import REPEATED, Counts, Repeats, Shard, ShardPaths, read_record
from mmemb_r1.training.settling.faults import Skipped

_NUMBERS = ("read", "written", "rationales", "left_out")


@dataclass
class ImportSummary:
    """
    Count what an import did.

    Attributes:
        sources: name of a file -> task -> its counts.
    """

    sources: dict[str, dict[str, Counts]] = field(default_factory=dict)

    @property
    def tasks(self) -> dict[str, Counts]:
        """Count by task, over all files."""
        found: dict[str, Counts] = {}
        for tasks in self.sources.values():
            for task, counts in tasks.items():
                _add(found.setdefault(task, Counts()), counts)
        return dict(sorted(found.items()))

    @property
    def total(self) -> Counts:
        """Count all."""
        total = Counts()
        for counts in self.tasks.values():
            _add(total, counts)
        return total

    def as_dict(self) -> dict[str, Any]:
        """Make what `summary.json` holds."""
        sources = {
            name: {task: asdict(counts) for task, counts in tasks.items()} for name, tasks in self.sources.items()
        }
        return {
            "total": asdict(self.total),
            "tasks": {task: asdict(counts) for task, counts in self.tasks.items()},
            "sources": sources,
        }

    def lines(self) -> Iterator[str]:
        """Describe the import as a table, and why pairs were skipped, in lines of text."""
        rows = {**self.tasks, "total": self.total}
        width = max(map(len, rows))
        yield f"{'':{width}}{'read':>12}{'written':>12}{'rationales':>12}{'skipped':>12}{'left out':>12}"
        for task, counts in rows.items():
            numbers = (counts.read, counts.written, counts.rationales, sum(counts.skipped.values()), counts.left_out)
            yield f"{task:{width}}" + "".join(f"{number:12,}" for number in numbers)
        for kind, number in sorted(self.total.skipped.items(), key=lambda item: (-item[1], item[0])):
            yield f"{number:8,} skipped: {kind}"


def summarize(shards: Mapping[str, Sequence[ShardPaths]], repeats: Repeats) -> ImportSummary:
    """Sum up the records of all shards, by the name of their source."""
    summary = ImportSummary()
    for name, own in shards.items():
        tasks = summary.sources[name] = {}
        for paths in own:
            record = read_record(paths.record)
            for task, counts in record.tasks.items():
                _add(tasks.setdefault(task, Counts()), counts)
            for _, task, rationales in _again(paths, record, repeats):
                tasks[task].written -= 1
                tasks[task].rationales -= rationales
                tasks[task].skip(REPEATED)
    return summary


def skipped_rows(shards: Mapping[str, Sequence[ShardPaths]], repeats: Repeats) -> Iterator[Skipped]:
    """Yield all that was skipped, source by source."""
    for name, own in shards.items():
        for paths in own:
            record = read_record(paths.record)
            listed = [(row, side, reason) for row, side, reason in record.skipped]
            listed += [(row, "row", f"it is {REPEATED}.") for row, _, _ in _again(paths, record, repeats)]
            for row, side, reason in sorted(listed):
                yield Skipped(name, row, None, side, reason)


def _again(paths: ShardPaths, record: Shard, repeats: Repeats) -> list[tuple[int, str, int]]:
    return [record.written[place] for place in repeats.places.get(paths.name, [])]


def _add(total: Counts, more: Counts) -> None:
    for name in _NUMBERS:
        setattr(total, name, getattr(total, name) + getattr(more, name))
    for kind, number in more.skipped.items():
        total.skip(kind, number)
