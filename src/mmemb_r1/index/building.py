"""Build an index, and bring it up to date: only what is new or changed is embedded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmemb_r1.encoding import check_device, encoding_settings, media_options
from mmemb_r1.index.files import PAGE_SCALE, folder_source
from mmemb_r1.index.items import Item, Opened, Source, Unreadable, thumbnail
from mmemb_r1.index.rows import is_table, table_source
from mmemb_r1.index.store import (
    APPROXIMATE_FROM,
    PRECISIONS,
    Stored,
    create_rows,
    database,
    delete_rows,
    index_vectors,
    index_words,
    open_rows,
    rows_of_ids,
    stored_items,
    tidy,
    write_rows,
)
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.media_mmemb_r1 import BROKEN_MEDIUM
from mmemb_r1.modeling.options_mmemb_r1 import check_option, check_options
from mmemb_r1.progress import progress_bar
from mmemb_r1.runs import check_run, read_json, record_run, write_json
from mmemb_r1.sentence_transformers import MMEmbR1
from mmemb_r1.stream import FIXED

if TYPE_CHECKING:
    from lancedb.table import Table

SETTINGS, ABOUT, LOCK = "settings.json", "about.json", ".lock"
DEFAULT_SHARD_SIZE = 128  # pages of a PDF are drawn before they are embedded: some megabytes each
_LAYOUT = 1


@dataclass
class IndexSummary:
    """
    Sum up what became of the items of a source.

    Attributes:
        added, changed, deleted, unchanged: how many items. Some of those that were added or changed may have a
            content that is there already, under another name or with other metadata: it is not embedded again.
        embedded: how many were embedded.
        unreadable: what could not be indexed, with the reasons; it is tried again in the next run.
        passed_over: suffix -> how many files nothing reads.
    """

    added: int = 0
    changed: int = 0
    deleted: int = 0
    unchanged: int = 0
    embedded: int = 0
    unreadable: list[Unreadable] = field(default_factory=list)
    passed_over: dict[str, int] = field(default_factory=dict)


def build_index(
    source: Any,
    model: MMEmbR1 | str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    columns: Mapping[str, str] | None = None,
    base: str | os.PathLike[str] | None = None,
    moved: bool = False,
    precision: str | None = None,
    shard_size: int = DEFAULT_SHARD_SIZE,
    show_progress_bar: bool | None = None,
    **options: Any,
) -> IndexSummary:
    """
    Index what a source holds, in a folder that `Index.open` opens; called again, bring the index up to date.

    Items are told by their ids, and whether they changed by digests of their contents, as `mmemb_r1.content` makes
    them. What is there with the same content keeps its vector, whatever its name is; what the source no longer holds
    is deleted. Rows are written `shard_size` at a time, each time whole or not at all: the same call goes on with a
    run that was killed. What can't be read is listed, and does not end the run.

    Args:
        source: a folder of pictures, videos, PDFs and texts, or one such file; or a table: CSV, JSON lines, Parquet, a
            folder of these, of pictures with `metadata.csv`, or of `save_to_disk`, the id of a data set of the Hub, or
            a `Dataset`.
        model: an [`MMEmbR1`], or the folder or Hub id of one.
        directory: of the index; made if it is missing.
        columns: of a table, our name (`id`, `text`, `image`, `video`) -> column that is it, see
            [`~mmemb_r1.index.rows.table_source`]. All others are metadata, which searches filter by.
        base: where relative paths in a table start. Default: the folder of its file.
        moved: whether the index goes on with a source at another place than before.
        precision: of the vectors in an index for approximate search: `"float32"`, `"int8"` or `"binary"`. Default: no
            such index below 100,000 rows, and from there on `"int8"`. Full vectors are kept in any case.
        shard_size: items that are embedded and written in one step; a killed run loses no more.
        show_progress_bar: `False` for no bar. Default: one, where standard error is a terminal.
        **options: of `encode_document`: `reasoning`, `truncate_dim`, `batch_size`, `prompt`, `allow_remote_media`,
            `device` and so on.

    Raises:
        ValueError: if the source is none, or holds nothing; if the index was begun with another model, other options
            or another source; if another process writes to it now.
        ImportError: if LanceDB is not installed, or pypdfium2 and there is a PDF.
    """
    folder = Path(directory).expanduser()
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r:.80} is not known; allowed: {', '.join(PRECISIONS)}.")
    if fixed := [name for name in FIXED if name in options]:
        raise ValueError(f"{fixed[0]} can't be chosen here: an index keeps float32 vectors. Leave it out.")
    shard_size = check_option("shard_size", shard_size)
    options = check_options({"task": "document", **options})
    check_device(options.get("device"))
    database()  # before anything is embedded, if it is not there
    found = _source(source, folder, columns, base)
    if not isinstance(model, MMEmbR1):
        model = MMEmbR1(os.fspath(model), device=options.get("device"))
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        build = _Build(model, folder, found, moved, options)
        with progress_bar(show_progress_bar) as bar:
            task = bar.add_task("Indexing", total=found.total)
            build.run(shard_size, lambda count: bar.advance(task, count))
        build.finish(precision)
    return build.summary


def _source(source: Any, folder: Path, columns: Any, base: Any) -> Source:
    """Open a source: a folder or file of media, or a table."""
    path = Path(source).expanduser() if isinstance(source, str | os.PathLike) else None
    given = source if path is None or not path.exists() else path
    if path is None or is_table(given):
        found = table_source(given, columns, None if base is None else Path(base))
    elif columns or base is not None:
        raise ValueError(f"columns and base are of tables, and {source} is a folder of files; leave them out.")
    elif not path.exists():
        raise ValueError(f"{source}: there is no such file or folder.")
    else:
        found = folder_source(path, folder)
    if not found.total:  # a disk that is not mounted would empty the index
        raise ValueError(f"{source} holds nothing to index; allowed: pictures, videos, PDFs, texts, rows of a table.")
    return found


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"another process writes to the index {folder} now; wait until it is done.") from error
    try:
        yield
    finally:
        lock.release()


class _Build:
    """Write the rows of one call of `build_index`."""

    def __init__(self, model: MMEmbR1, folder: Path, source: Source, moved: bool, options: Mapping[str, Any]) -> None:
        self.model, self.folder, self.source = model, folder, source
        self.media = media_options(model, options)
        self.options, settings = encoding_settings(model, options)
        self.settings = {"layout": _LAYOUT, "page_scale": PAGE_SCALE, **settings}
        name = model[0].model.config._name_or_path
        is_folder = bool(name) and Path(name).is_dir()
        self.about = {"model": str(Path(name).absolute()) if is_folder else name, "source": source.name}
        self.table = open_rows(folder)
        self.stored: dict[str, Stored] = {}
        if self.table is not None:
            self._check(self.table, moved)
            self.stored = stored_items(self.table)
        self.known = {stored.content: name for name, stored in self.stored.items()}  # content -> an id that has it
        self.present: set[str] = set()
        self.summary = IndexSummary(passed_over=source.passed_over)

    def _check(self, table: Table, moved: bool) -> None:
        """Refuse to go on with an index of another model, source or metadata."""
        hint = "Name another folder for the index, or remove this one."
        check_run(self.folder / SETTINGS, self.settings, what=f"the index {self.folder}", hint=hint)
        before = read_json(self.folder / ABOUT)["source"]
        if before != self.source.name and not moved:
            raise ValueError(
                f"the index {self.folder} is of {before}, not of {self.source.name}. {hint} If it is the same source "
                "at another place, say moved=True (--moved)."
            )
        names = [field.name for field in self.source.metadata or ()]
        kept = table.schema.field("metadata").type if "metadata" in table.schema.names else ()
        there = [field.name for field in kept]
        if sorted(names) != sorted(there):
            raise ValueError(
                f"the index {self.folder} has the metadata {', '.join(there) or 'none'}, and the source now "
                f"{', '.join(names) or 'none'}. {hint}"
            )

    def run(self, shard_size: int, advance: Callable[[int], object]) -> None:
        """Go through all items; whatever is new or changed is written."""
        pending: list[Item] = []
        seen: set[str] = set()
        for item in self.source.items(self.media):
            if isinstance(item, int):
                advance(item)
            elif isinstance(item, Unreadable):
                self.summary.unreadable.append(item)
            elif item.id in seen:
                self.summary.unreadable.append(Unreadable(item.id, "this id comes twice; give each row its own"))
            elif self.stored.get(item.id) == (item.content, item.facts):
                seen.add(item.id)
                self.present.add(item.id)
                self.summary.unchanged += 1
            else:
                seen.add(item.id)
                pending.append(item)
                if len(pending) == shard_size:
                    self._write(pending)
                    pending = []
        if pending:
            self._write(pending)

    def finish(self, precision: str | None) -> None:
        """Delete what the source no longer holds, and bring LanceDB's indexes up to date."""
        if self.table is None:
            return
        gone = [name for name in self.stored if name not in self.present]
        delete_rows(self.table, gone)
        self.summary.deleted = len(gone)
        write_json(self.folder / ABOUT, self.about)
        index_words(self.table)
        if precision is not None or self.table.count_rows() >= APPROXIMATE_FROM:
            index_vectors(self.table, precision or "int8")
        if self.summary.added or self.summary.changed or gone:
            tidy(self.table)

    def _write(self, items: list[Item]) -> None:
        """Write a row for each item that can be read; contents that are known keep their vectors."""
        there = (
            {}
            if self.table is None
            else rows_of_ids(self.table, {self.known[item.content] for item in items if item.content in self.known})
        )
        by_content = {row["content"]: row for row in there.values()}
        missing = {item.content: item for item in items if item.content not in by_content}
        reasons: dict[bytes, str] = {}
        by_content |= self._embedded(list(missing.values()), reasons)
        rows = []
        for item in items:
            if item.content in reasons:
                self.summary.unreadable.append(Unreadable(item.id, reasons[item.content]))
                continue
            rows.append(_named(by_content[item.content], item))
            self.known[item.content] = item.id
            self.present.add(item.id)
            if item.id in self.stored:
                self.summary.changed += 1
            else:
                self.summary.added += 1
        if not rows:
            return
        if self.table is None:
            write_json(self.folder / ABOUT, self.about)
            (self.folder / SETTINGS).unlink(missing_ok=True)  # of a run that wrote nothing
            record_run(self.folder / SETTINGS, self.settings)
            self.table = create_rows(self.folder, len(rows[0]["vector"]), self.source.metadata)
        write_rows(self.table, rows)

    def _embedded(self, items: list[Item], reasons: dict[bytes, str]) -> dict[bytes, dict[str, Any]]:
        """Embed items: content -> what is kept of it. Why others can't be embedded is added to `reasons`."""
        ready: list[tuple[Item, Opened, bytes | None]] = []
        for item in items:
            try:
                opened = item.open()
                ready.append((item, opened, thumbnail(opened.value, self.media)))
            except BROKEN_MEDIUM as error:
                reasons[item.content] = " ".join(str(error).split()) or type(error).__name__
        while ready:
            try:
                explained: Any = self.model.explain(
                    [opened.value for _, opened, _ in ready], **{"show_progress_bar": False, **self.options}
                )
                break
            except InputError as error:  # what `thumbnail` does not look at: a second picture, a text that is too long
                reasons[ready.pop(error.index)[0].content] = error.fault
        else:
            return {}
        self.summary.embedded += len(ready)
        return {
            item.content: {
                "kind": item.kind,
                "text": opened.text,
                "thumbnail": small,
                "vector": unit(found["embedding"]),
                **{name: found[name] for name in ("rationale", "gate_prob", "reasoned")},
            }
            for (item, opened, small), found in zip(ready, explained, strict=True)
        }


def unit(vector: Any) -> np.ndarray:
    """Give a vector `(D,)` unit norm; one of zeros stays."""
    values = np.asarray(vector, dtype=np.float32)
    return values / max(float(np.linalg.norm(values)), float(np.finfo(np.float32).tiny))


def _named(row: Mapping[str, Any], item: Item) -> dict[str, Any]:
    """Make the row of an item of what is kept of its content."""
    words = [row["text"], row["rationale"], *(one for one in item.metadata.values() if isinstance(one, str))]
    return {
        **row,
        "id": item.id,
        "kind": item.kind,
        "path": item.path,
        "page": item.page,
        "words": "\n".join(filter(None, words)),
        "content": item.content,
        "facts": item.facts,
        "metadata": item.metadata,
    }
