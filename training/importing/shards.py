"""Keep the shards of an import: pairs, rationales, and a record of what was read, which is written last."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mmemb_r1.file_formats import read_parquet
from mmemb_r1.runs import read_json, replaced_file, write_json
from mmemb_r1.training.importing.pair import SIDES, Pair
from mmemb_r1.training.importing.text import joined_parts
from mmemb_r1.training.rationales.table import rationale_shard_path, schema
from mmemb_r1.training.tables import number_rows, text_numbers

ANSWERS = ("join", "apart", "drop")
REPEATED = "there already under the same id"
_HINT = "Remove the folder, and import again."


@dataclass
class Counts:
    """Count the pairs of a task: read, written, skipped by kind, left out because nobody asked for them."""

    read: int = 0
    written: int = 0
    rationales: int = 0
    left_out: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    def skip(self, kind: str, number: int = 1) -> None:
        """Count pairs that were skipped."""
        self.skipped[kind] = self.skipped.get(kind, 0) + number


@dataclass
class Shard:
    """
    Record what became of some rows of a source.

    Attributes:
        end: the number of the next row.
        position: bytes of the source that were read.
        last: whether there are no more rows.
        tasks: counts by task.
        skipped: row, side and reason of each pair that was skipped.
        written: row, task and number of rationales of each pair that was written.
    """

    end: int
    position: int = 0
    last: bool = False
    tasks: dict[str, Counts] = field(default_factory=dict)
    skipped: list[tuple[int, str, str]] = field(default_factory=list)
    written: list[tuple[int, str, int]] = field(default_factory=list)

    def of(self, task: str) -> Counts:
        """Return the counts of a task."""
        return self.tasks.setdefault(task, Counts())


@dataclass(frozen=True)
class ShardPaths:
    """Name the files of a shard: the `index`-th one of the `number`-th source."""

    output: Path
    number: int
    index: int

    @property
    def name(self) -> str:
        return f"{self.number:05d}-{self.index:05d}"

    @property
    def pairs(self) -> Path:
        return self.output / "pairs" / f"{self.name}.parquet"

    @property
    def rationales(self) -> Path:
        return rationale_shard_path(self.output / "rationales", f"{self.number:05d}", self.index)

    @property
    def record(self) -> Path:
        return self.output / "records" / f"{self.name}.json"


def pairs_schema() -> pa.Schema:
    """Return the Arrow schema of imported pairs."""
    texts = pa.list_(pa.string())
    part = pa.struct({"text": pa.string(), "image": texts, "video": texts, "instruction": pa.string()})
    return pa.schema(
        {"pair_id": pa.string(), "task": pa.string(), "query": part, "target": part, "negatives": pa.list_(part)}
    )


def pair_row(pair_id: str, pair: Pair) -> dict[str, Any]:
    """Make a row of the pairs table."""
    inputs = {"query": pair.query, "target": pair.target, "negatives": pair.negatives}
    return {"pair_id": pair_id, "task": pair.task, **inputs}


def rationale_rows(pair_id: str, pair: Pair, worker: str, answers: str) -> list[dict[str, Any]]:
    """
    Make rows of the rationales table.

    Args:
        answers: what becomes of a last part that is the answer: `"join"` makes it the last line of the text, `"apart"`
            also keeps the parts in a column `segments`, `"drop"` drops it.
    """
    rows = []
    for side in SIDES:
        parts = pair.rationales.get(side, [])
        if answers == "drop" and len(parts) > 1 and side not in pair.cut:
            parts = parts[:-1]
        if parts:
            end = "length" if side in pair.cut else "stop"
            text = "\n".join(parts) if answers == "drop" else joined_parts(parts)
            row = {"pair_id": pair_id, "side": side, "worker": worker, "sample": 0, "text": text, "finish_reason": end}
            rows.append({**row, "segments": parts} if answers == "apart" else row)
    return rows


def write_shard(
    paths: ShardPaths, shard: Shard, pairs: Sequence[Mapping[str, Any]], rationales: Sequence[Mapping[str, Any]]
) -> None:
    """Write a shard's tables, where they have rows, and then its record, with which it counts as read."""
    kind = schema()
    if rationales and "segments" in rationales[0]:
        kind = kind.append(pa.field("segments", pa.list_(pa.string())))
    for path, rows, columns in ((paths.rationales, rationales, kind), (paths.pairs, pairs, pairs_schema())):
        path.unlink(missing_ok=True)  # of a run that was killed before the record
        if rows:
            _write(path, pa.Table.from_pylist(list(rows), columns))
    with replaced_file(paths.record) as temporary:
        temporary.write_text(json.dumps(asdict(shard)), encoding="utf-8")


def _write(path: Path, table: pa.Table) -> None:
    with replaced_file(path) as temporary:
        pq.write_table(table, temporary)


def read_record(path: Path) -> Shard:
    """Read the record of a shard."""
    given = read_json(path)
    tasks = {name: Counts(**counts) for name, counts in given["tasks"].items()}
    lists = {name: [tuple(one) for one in given[name]] for name in ("skipped", "written")}
    return Shard(**{**given, **lists, "tasks": tasks})


def shards_of(output: Path, number: int, known: int = 0) -> list[ShardPaths]:
    """List the shards of a source that are there, in their order, without a gap; the first `known` of them are."""
    found = [ShardPaths(output, number, index) for index in range(known)]
    while (paths := ShardPaths(output, number, len(found))).record.exists():
        found.append(paths)
    return found


class Repeats:
    """
    Find pairs whose id an earlier pair has, and take them out of the tables.

    Which ones these are is written to `repeats.json` before the first is taken out, so that a run that is killed
    meanwhile goes on with the same.
    """

    def __init__(self, output: Path, shards: Sequence[ShardPaths]) -> None:
        self._path, self._shards = output / "repeats.json", [paths for paths in shards if paths.pairs.exists()]

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """Name of a shard -> places of such pairs among those that were written to it."""
        if not self._path.exists():
            write_json(self._path, self._found())
        return read_json(self._path)

    def _found(self) -> dict[str, list[int]]:
        digests: list[npt.NDArray[np.uint64]] = [np.zeros((0, 2), np.uint64)]
        for paths in self._shards:
            digests.append(text_numbers(self._ids(paths.pairs)))
        numbers = number_rows(np.concatenate(digests))
        again = np.ones(len(numbers), dtype=bool)
        again[np.unique(numbers, return_index=True)[1]] = False
        parts = np.split(again, np.cumsum([len(part) for part in digests[1:]])[:-1])
        return {
            paths.name: np.flatnonzero(part).tolist()
            for paths, part in zip(self._shards, parts, strict=False)
            if part.any()
        }

    def take_out(self) -> None:
        """Write the tables without these pairs, as far as that was not done before."""
        for paths in self._shards:
            places = self.places.get(paths.name)
            if not places or pq.read_metadata(paths.pairs).num_rows < len(read_record(paths.record).written):
                continue
            table = read_parquet(paths.pairs, schema=pairs_schema(), hint=_HINT)
            keep = np.ones(len(table), dtype=bool)
            keep[places] = False
            if paths.rationales.exists():
                kept = set(table["pair_id"].filter(pa.array(keep)).to_pylist())
                self._keep_rationales(paths.rationales, kept)
            _write(paths.pairs, table.filter(pa.array(keep)))

    @staticmethod
    def _keep_rationales(path: Path, kept: set[str]) -> None:
        table = read_parquet(path, hint=_HINT)
        seen: set[tuple[str, str]] = set()
        keep = []
        for key in zip(table["pair_id"].to_pylist(), table["side"].to_pylist(), strict=True):
            keep.append(key[0] in kept and key not in seen)
            seen.add(key)
        _write(path, table.filter(pa.array(keep)))

    @staticmethod
    def _ids(path: Path) -> Iterator[str]:
        yield from read_parquet(path, columns=["pair_id"], hint=_HINT)["pair_id"].to_pylist()
