"""List the files of a source: of a folder, or of a data set of the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from mmemb_r1.tables.pairs import HUB_FORM, HUB_TABLE, hub_table
from mmemb_r1.training.importing.formats import Format

_SHARD = re.compile(r"(?:train|test|val|validation|data|metadata|original|diverse_instruction)?(?:[-_]?\d+-of-\d+)?")
_SAMPLE = 2**20  # bytes


@dataclass(frozen=True)
class SourceFile:
    """
    Name a file whose rows are read.

    Attributes:
        name: within the source, for messages and the record of the run.
        place: the file.
        task: of its rows, where they name none.
        size: in bytes.
        mark: changes where the content does.
    """

    name: str
    place: str
    task: str
    size: int
    mark: str


def list_sources(source: str, form: Format, matching: str | None = None) -> list[SourceFile]:
    """
    List what is read of a source, in the order of the names.

    Args:
        source: a file, a folder, or a data set of the Hub (`HUB_FORM`).
        form: the format, which says which files of a folder it reads.
        matching: only files whose path in the folder matches this pattern, for example `*original*`.

    Raises:
        ValueError: if nothing is there to be read.
    """
    if not form.files:
        return _of_the_hub(source)
    path = Path(source)
    if not path.exists():
        raise ValueError(f"{source}: there is no such file or folder")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.name.endswith(form.files))
    names = {file: file.name if path.is_file() else file.relative_to(path).as_posix() for file in files}
    files = [file for file in files if file.is_file() and not re.search(r"(?:^|/)\.", names[file])]
    files = [file for file in files if matching is None or Path(names[file]).match(matching)]
    if not files:
        which = " or ".join(form.files) + (f", and match {matching!r}" if matching else "")
        raise ValueError(f"{source} holds nothing to be read; needed: files that end in {which}")
    found = []
    for file in files:
        # a file of a Hub data set is named after its split and number; a folder above it says what it holds
        names_above = [file.stem, *(folder.name for folder in file.absolute().parents)]
        task = next((name for name in names_above if not _SHARD.fullmatch(name)), file.stem)
        found.append(SourceFile(names[file], str(file.absolute()), task, file.stat().st_size, _mark(file)))
    return found


def _mark(file: Path) -> str:
    """Digest the size, the beginning and the end of a file: all of it would take as long as to import it."""
    size = file.stat().st_size
    digest = blake2b(str(size).encode(), digest_size=16)
    with file.open("rb") as stream:
        digest.update(stream.read(_SAMPLE))
        stream.seek(max(0, size - _SAMPLE))
        digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()


def _of_the_hub(source: str) -> list[SourceFile]:
    """Let `datasets` download a table of the Hub; its files are named after the commit."""
    match = HUB_TABLE.fullmatch(source)
    if match is None:
        raise ValueError(f"{source!r} is no id of a data set of the Hub; write {HUB_FORM}")
    table, task = hub_table(source), match["id"].rpartition("/")[2]
    return [
        SourceFile(f"{table.name}/{number}", str(file), task, file.stat().st_size, table.name)
        for number, file in enumerate(table.files)
    ]
