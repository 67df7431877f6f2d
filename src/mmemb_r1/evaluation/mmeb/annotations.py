"""Read a task's annotations from a local copy of the Hub dataset. Nothing is downloaded or cached."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmemb_r1.evaluation.mmeb.catalogue import MMEBTask

KINDS = {".json": "json", ".jsonl": "json", ".csv": "csv"}


def annotation_folders(task: MMEBTask, folder: Path) -> tuple[Path, Path]:
    """Say where annotations are looked for: where `download_task` puts them, and beside the media."""
    return folder / "annotations" / task.dataset, folder / f"{task.modality}-tasks" / task.dataset.split("/")[-1]


def annotation_folder(task: MMEBTask, folder: Path) -> Path:
    """Find the annotations; an error says where they are looked for, and how to get them."""
    places = annotation_folders(task, folder)
    for place in places:
        if place.is_dir():
            return place
    raise ValueError(
        f"{task.name}: its annotations are missing, neither {places[0]} nor {places[1]} is there. Put a copy of the "
        f"Hub dataset {task.dataset} there, README.md included, or call download_task({task.name!r}, folder)."
    )


def data_files(task: MMEBTask, folder: Path, config: str | None) -> list[Path]:
    """Find the files of one configuration and the task's split, in order; an error if the copy lacks them."""
    import datasets

    place, found, cause = annotation_folder(task, folder), {}, None
    try:
        # an absolute path: a relative one could be the id of a dataset on the Hub
        found = datasets.load_dataset_builder(str(place.resolve()), config).config.data_files
    except (ValueError, FileNotFoundError) as error:
        cause = error
    if not found.get(task.split):
        what = f"files of the configuration {config!r} and the split" if config else "files of the split"
        why = f" ({cause})" if cause else ""
        raise ValueError(
            f"{task.name}: {place} has no {what} {task.split!r}{why}. Copy all of the Hub dataset {task.dataset}: its "
            "README.md says which files these are."
        ) from cause
    return [Path(file) for file in found[task.split]]


def read_annotations(task: MMEBTask, folder: Path, config: str | None, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Read the rows of one configuration and the task's split; an error if these columns or all rows are missing."""
    files = data_files(task, folder, config)
    rows = [row for file in files for row in _read_file(task, file)]
    if not rows:
        raise ValueError(f"{task.name}: its annotations in {files[0].parent} have no rows.")
    if missing := [column for column in columns if column not in rows[0]]:
        raise ValueError(
            f"{task.name}: {files[0]} has no column {missing[0]!r}; needed: {', '.join(columns)}. It has: "
            f"{', '.join(rows[0])}."
        )
    return rows


def _read_file(task: MMEBTask, file: Path) -> list[dict[str, Any]]:
    import datasets
    import pyarrow.parquet

    with readable(task, file):
        if file.suffix == ".parquet":
            return pyarrow.parquet.read_table(file).to_pylist()
        if file.suffix not in KINDS:
            raise ValueError(f"allowed are files that end in .parquet, {', '.join(KINDS)}")
        # streamed: it would be copied into the user's cache first
        kind, split = KINDS[file.suffix], task.split
        return list(datasets.load_dataset(kind, data_files={split: str(file)}, split=split, streaming=True))


@contextmanager
def readable(task: MMEBTask, file: Path) -> Iterator[None]:
    """Make errors of the formats' readers say which file of which task it is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{task.name}: {file} can't be read ({error}). Copy it from {task.dataset} again.") from error


def noted_revision(task: MMEBTask, folder: Path) -> str | None:
    """Read the commit that `download_task` noted; `None` for copies that came another way."""
    note = revision_note(task, folder)
    if annotation_folder(task, folder) != annotation_folders(task, folder)[0]:
        return None
    return json.loads(note.read_text(encoding="utf-8"))["revision"] if note.is_file() else None


def revision_note(task: MMEBTask, folder: Path) -> Path:
    """Say where the commit of a downloaded dataset is noted."""
    place = annotation_folders(task, folder)[0]
    return place.with_name(f"{place.name}.json")
