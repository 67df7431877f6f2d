"""Look up the pictures and frames that a task's annotations name, in a local copy. Nothing is opened or copied."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from mmemb_r1.evaluation.mmeb.catalogue import MEDIA_REPOSITORY, UNPACKED, MMEBTask, archive_of

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")


class Media:
    """
    Looks up the files that a task names in the local copy `folder`, and keeps `num_frames` frames of each video;
    `None`: all of them. What is missing is noted, so that `check` can tell of all of it at once.

    Attributes:
        sizes: bytes of each file that was asked for, by its path from `folder`.
        missing: what was asked for and is not there: path -> what is wrong with it.
    """

    def __init__(self, task: MMEBTask, folder: Path, num_frames: int | None) -> None:
        self.task, self.folder, self.num_frames = task, folder, num_frames
        self.sizes: dict[str, int] = {}
        self.missing: dict[Path, str] = {}
        self._asked: set[str] = set()  # pictures, and folders of frames or clips
        self._frames: dict[str, list[str]] = {}

    @cached_property
    def root(self) -> Path:
        """Find the folder of this task's media: of those where they may be, the first that holds anything."""
        places = [self.folder / place for place in self.task.media_folders]
        found = next((place for place in places if place.is_dir() and any(place.iterdir())), None)
        if found is None:
            neither = "" if len(places) == 1 else f"; nor is anything in {places[1]}"
            raise ValueError(
                f"{self.task.name}: the folder {places[0]} of its pictures or frames is missing or empty{neither}. "
                f"{self._remedy}"
            )
        return found

    @property
    def _remedy(self) -> str:
        name, archive = self.task.name, archive_of(self.task)
        if archive is None:
            return f"Copy all of {self.task.dataset}, or call download_task({name!r}, folder)."
        note = self.folder / archive.folder / UNPACKED
        again = f"remove {note} and call" if note.is_file() else "call"
        return (
            f"Unpack {', '.join(archive.parts)} of {MEDIA_REPOSITORY} into {self.folder / archive.folder}, or {again} "
            f"download_task({name!r}, folder)."
        )

    def check(self) -> None:
        """Refuse a task of whose media some are missing: name the first, and say how many there are."""
        if self.missing:
            raise ValueError(
                f"{self.task.name}: {next(iter(self.missing.values()))}. {len(self.missing):,} are missing or empty, "
                f"of the {len(self._asked):,} pictures and folders of frames looked for in {self.root}. {self._remedy}"
            )

    def picture(self, name: str) -> str:
        """Find a picture by its path from the media folder; refuse a path out of the local copy."""
        path = self._inside(name, "picture")
        self._asked.add(name)
        self._note_size(path, "picture")
        return str(path)

    def frames(self, name: str, *, may_be_none: bool = False) -> list[str]:
        """
        Find the frames of a video by their folder's path: all, or `num_frames` evenly spread. None are fine if the
        folder is there and they `may_be_none`.
        """
        if not self._frames.get(name):
            place = self._inside(name, "folder of frames")
            self._asked.add(name)
            files = [one for one in self._listed(place, "of a video's frames") if one.lower().endswith(FRAME_SUFFIXES)]
            if not files and not may_be_none:
                self.note_missing(name, f"holds no frames ({', '.join(FRAME_SUFFIXES)})")
            files.sort(key=_by_number)
            kept = files if self.num_frames is None else evenly_spread(files, self.num_frames)
            self._frames[name] = [str(place / file) for file in kept if self._note_size(place / file, "frame")]
        return self._frames[name]

    def folders(self, name: str) -> list[str]:
        """List the names of the folders in a folder, sorted by the numbers in them; none if it is missing."""
        place = self._inside(name, "folder of clips")
        self._asked.add(name)
        names = self._listed(place, "of a video's clips")
        return sorted((one for one in names if (place / one).is_dir()), key=_by_number)

    def note_missing(self, name: str, what: str) -> None:
        """Note what a folder lacks, unless it is missing itself."""
        self.missing.setdefault(self.root / name, f"the folder {self.root / name} {what}")

    def _listed(self, place: Path, what: str) -> list[str]:
        if place.is_dir():
            return os.listdir(place)
        self.missing[place] = f"the folder {place} {what} is missing"
        return []

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

    def _note_size(self, path: Path, what: str) -> bool:
        inside = path.relative_to(self.folder).as_posix()
        if inside not in self.sizes:
            self.sizes[inside] = path.stat().st_size if path.is_file() else 0
            if not self.sizes[inside]:
                self.missing[path] = f"the {what} {path} is {'empty' if path.is_file() else 'missing'}"
        return self.sizes[inside] > 0


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
