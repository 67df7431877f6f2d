"""
Read the visual-document annotations, three tables as in BEIR: `queries`, `corpus`, `qrels`.

Pages are pictures inside the corpus' Parquet files, or files named after their ids beside it.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import md5
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.evaluation.mmeb.annotations import data_files, read_annotations, readable
from mmemb_r1.evaluation.mmeb.building import TaskBuilder

if TYPE_CHECKING:
    import pyarrow.parquet


def read_beir(builder: TaskBuilder) -> tuple[Sequence[str], Sequence[Any], Mapping[str, int]]:
    """Read which pages of a corpus answer a question, and how well; return the pages for `TaskBuilder.build`."""
    task, folder = builder.task, builder.folder
    queries = read_annotations(
        task, folder, "queries", ("query-id", "query", *(["language"] if task.language else []))
    )
    grades = _grades(read_annotations(task, folder, "qrels", ("query-id", "corpus-id", "score")))
    ids, pages, sizes = _corpus(builder)
    known = set(ids)
    for row in queries:
        if task.language and row["language"] != task.language:
            continue
        query_id = str(row["query-id"])
        relevant = grades.get(query_id, {})
        if unknown := sorted(relevant.keys() - known):
            raise builder.error(query_id, f"the page {unknown[0]!r} that is relevant to it is not in the corpus")
        # translations of a question are right or wrong together
        text, cluster = row["query"] or "", json.dumps(sorted(relevant) or query_id)
        builder.query(query_id, {"text": text if text.strip() else ""}, [], relevant, cluster)
    return ids, pages, sizes


def _grades(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """
    Collect query -> page -> grade: of several grades the highest, none of those that are not above 0.

    >>> _grades([{"query-id": 1, "corpus-id": "a", "score": 1}, {"query-id": 1, "corpus-id": "a", "score": 2}])
    {'1': {'a': 2.0}}
    """
    grades: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row["score"] > 0:
            of_query, page = grades[str(row["query-id"])], str(row["corpus-id"])
            of_query[page] = max(of_query.get(page, 0.0), float(row["score"]))
    return dict(grades)


def _corpus(builder: TaskBuilder) -> tuple[list[str], Sequence[Any], dict[str, int]]:
    import pyarrow.parquet

    task, files = builder.task, data_files(builder.task, builder.folder, "corpus")
    if other := [file for file in files if file.suffix != ".parquet"]:
        raise ValueError(
            f"{task.name}: the corpus {other[0]} is no Parquet file; the Hub dataset {task.dataset} has it."
        )
    ids: list[str] = []
    with_pages = True
    for file in files:
        with readable(task, file):
            columns = pyarrow.parquet.read_schema(file).names
        if "corpus-id" not in columns:
            raise ValueError(f"{task.name}: {file} has no column 'corpus-id'; it has: {', '.join(columns)}.")
        with_pages &= "image" in columns
        ids += map(str, pyarrow.parquet.read_table(file, columns=["corpus-id"])["corpus-id"].to_pylist())
    sizes = {"/".join(file.parts[-2:]): file.stat().st_size for file in files}
    if with_pages:
        return *_without_copies(builder, ids, Pages(files, task.name)), sizes
    unique = list(dict.fromkeys(ids))
    return unique, [{"image": builder.media.picture(page_file(one, task.meta_task))} for one in unique], sizes


def page_file(corpus_id: str, meta_task: str) -> str:
    """
    Name the file of a page that lies beside the corpus. VisRAG's ids are names of files, too long ones among them.

    >>> page_file("12", "visdoc/ood"), page_file("a.jpg", "visdoc/visrag")
    ('12.png', 'a_39465969.jpg')
    """
    if meta_task != "visdoc/visrag":
        return f"{corpus_id}.png"
    base, suffix = os.path.splitext(corpus_id)
    return f"{base[:50]}_{md5(corpus_id.encode(), usedforsecurity=False).hexdigest()[:8]}{suffix}"


def _without_copies(builder: TaskBuilder, ids: list[str], pages: Pages) -> tuple[list[str], Pages]:
    """Merge pages of one id; of different ones the first counts, as in the benchmark's own evaluation."""
    first: dict[str, int] = {}
    for row, one in enumerate(ids):
        if first.setdefault(one, row) != row and pages[row] != pages[first[one]]:
            builder.note_odd(one, "several pages have this id: the first of them counts")
    builder.merged += len(ids) - len(first)
    return list(first), pages.take(list(first.values()))


class Pages(Sequence[dict[str, bytes]]):
    """
    Reads pages of a corpus as inputs of `encode` from Parquet when asked for: a row group at a time.

    `files` have a column `image` of `{"bytes", "path"}`, as `datasets` writes pictures; `name` is the task's, for
    messages, and `rows` are all by default. A page without bytes is an error: at once where the files count these.
    """

    def __init__(self, files: Sequence[Path], name: str, rows: Sequence[int] | None = None) -> None:
        import pyarrow.parquet

        self._files, self._name = list(files), name
        self._groups: list[tuple[Path, int]] = []  # file, row group
        self._starts: list[int] = []  # row with which each begins
        total = 0
        for file in self._files:
            metadata = pyarrow.parquet.read_metadata(file)
            for group in range(metadata.num_row_groups):
                self._groups.append((file, group))
                self._starts.append(total)
                total += metadata.row_group(group).num_rows
                if _has_gaps(metadata.row_group(group)):
                    raise ValueError(f"{name}: pages in {file} are missing: rows without the bytes of a picture.")
        self._rows = range(total) if rows is None else rows
        self._read: tuple[int, list[Any]] = (-1, [])

    def take(self, rows: Sequence[int]) -> Pages:
        """Keep some of the rows."""
        return Pages(self._files, self._name, [self._rows[row] for row in rows])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        import pyarrow.parquet

        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = self._rows[index]
        group = bisect_right(self._starts, row) - 1
        if self._read[0] != group:
            file, number = self._groups[group]
            with pyarrow.parquet.ParquetFile(file) as opened:
                self._read = group, opened.read_row_group(number, columns=["image"])["image"].to_pylist()
        picture = self._read[1][row - self._starts[group]]
        if not picture or not picture.get("bytes"):
            raise ValueError(f"{self._name}: row {row} of the corpus in {self._groups[group][0]} has no picture.")
        return {"image": picture["bytes"]}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": (-1, [])}  # other processes read for themselves


def _has_gaps(group: pyarrow.parquet.RowGroupMetaData) -> bool:
    columns = (group.column(number) for number in range(group.num_columns))
    counted = [column.statistics for column in columns if column.path_in_schema == "image.bytes"]
    return any(one is not None and one.has_null_count and one.null_count > 0 for one in counted)
