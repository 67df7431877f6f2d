"""Read a task's annotations and media from a local copy of the Hub dataset. Nothing is downloaded or cached."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
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


FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")


class Media:
    """
    Looks up the files that a task names in the local copy `folder`, and keeps `num_frames` frames of each video.

    Attributes:
        sizes: bytes of each file that was asked for, by its path from `folder`.
    """

    def __init__(self, task: MMEBTask, folder: Path, num_frames: int) -> None:
        self.task, self.folder, self.num_frames = task, folder, num_frames
        self.sizes: dict[str, int] = {}
        self._frames: dict[str, list[str]] = {}

    @cached_property
    def root(self) -> Path:
        """Find the folder of this task's media."""
        root = self.folder / self.task.media
        if not root.is_dir():
            raise ValueError(
                f"{self.task.name}: the folder {root} of its pictures or frames is missing. Unpack the archives of "
                f"TIGER-Lab/MMEB-V2 there, or call download_task({self.task.name!r}, folder)."
            )
        return root

    def picture(self, name: str) -> str:
        """Find a picture by its path from the media folder; refuse a path out of the local copy, and an empty file."""
        return self._checked(self._inside(name, "picture"), "picture")

    def frames(self, name: str) -> list[str]:
        """Find the frames of a video by their folder's path: all, or `num_frames` evenly spread; errors likewise."""
        if name not in self._frames:
            place = self._inside(name, "folder of frames")
            if not place.is_dir():
                raise ValueError(f"{self.task.name}: the folder {place} of a video's frames is missing.")
            files = [file for file in os.listdir(place) if file.lower().endswith(FRAME_SUFFIXES)]
            if not files:
                raise ValueError(
                    f"{self.task.name}: the folder {place} holds no frames ({', '.join(FRAME_SUFFIXES)})."
                )
            kept = evenly_spread(sorted(files, key=_by_number), self.num_frames)
            self._frames[name] = [self._checked(place / file, "frame") for file in kept]
        return self._frames[name]

    def folders(self, name: str) -> list[str]:
        """List the names of the folders in a folder, sorted by the numbers in them."""
        place = self._inside(name, "folder of clips")
        if not place.is_dir():
            raise ValueError(f"{self.task.name}: the folder {place} of a video's clips is missing.")
        return sorted((entry.name for entry in os.scandir(place) if entry.is_dir()), key=_by_number)

    def _inside(self, name: str, what: str) -> Path:
        """Resolve a path from the annotations: these may come from anybody, and name files of this machine."""
        place = self.root / name
        # the folder of a task's media may itself be a link to another disk
        if Path(name).is_absolute() or not any(map(place.resolve().is_relative_to, self._roots)):
            raise ValueError(
                f"{self.task.name}: the annotations name the {what} {name!r}, which leads out of the local copy "
                f"{self.folder}; allowed are paths inside of it, from {self.root}. Copy {self.task.dataset} again."
            )
        return place

    @cached_property
    def _roots(self) -> tuple[Path, Path]:
        return self.folder.resolve(), self.root.resolve()

    def _checked(self, path: Path, what: str) -> str:
        inside = path.relative_to(self.folder).as_posix()
        if inside not in self.sizes:
            size = path.stat().st_size if path.is_file() else 0
            if not size:
                state = "empty" if path.is_file() else "missing"
                raise ValueError(f"{self.task.name}: the {what} {path} is {state}.")
            self.sizes[inside] = size
        return str(path)


def evenly_spread(items: Sequence[str], number: int) -> list[str]:
    """
    Keep some of the items, evenly spread from the first to the last; all of them where there are no more.

    >>> evenly_spread("abcdefghij", 4)
    ['a', 'd', 'g', 'j']
    >>> evenly_spread("abc", 8)
    ['a', 'b', 'c']
    """
    if len(items) <= number:
        return list(items)
    return [items[step * (len(items) - 1) // max(number - 1, 1)] for step in range(number)]


def _by_number(name: str) -> list[tuple[int, str]]:
    """
    Make a key that sorts numbers in names by their value.

    >>> sorted(["frame_10.jpg", "frame_9.jpg"], key=_by_number)
    ['frame_9.jpg', 'frame_10.jpg']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d+)", name)]
