"""Check that the pictures and videos of pairs are there, and write those to files that come as bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL import Image

from mmemb_r1.modeling.media_mmemb_r1 import BROKEN_MEDIUM, MediumError, image_formats, open_image, parse_address
from mmemb_r1.runs import replaced_file
from mmemb_r1.training.importing.pair import RowError

MISSING, BROKEN = "a file is missing", "a picture is broken"
_SUFFIXES = {"jpeg": "jpg", "jpeg2000": "jp2"}  # of formats; that of others is their name
NUM_FRAMES = 8  # of a folder of frames, as VLM2Vec-V2 takes them of LLaVA-Hound


class MediaPaths:
    """
    Turn the media of rows into paths for a table.

    Args:
        root: where relative paths start.
        output: the folder of the import. Pictures that come as bytes are written to its `media/`, one file for equal
            ones. What lies in it is named from its `pairs/`, so that it can be moved as a whole; other files by their
            absolute path.
        decode: whether every picture is decoded.
    """

    def __init__(self, root: Path, output: Path, decode: bool = False) -> None:
        self._root, self._output, self._decode = os.path.abspath(root), os.path.abspath(output), decode
        self._names = lru_cache(maxsize=64)(_names)  # of this import: files may come before the next

    def placed(self, value: Mapping[str, Any], side: str) -> dict[str, Any]:
        """
        Return an input with the paths of its media.

        Raises:
            RowError: if a file is missing or broken.
        """
        images = [self._image(one, side) for one in value["image"]]
        video = value["video"]
        if len(video) == 1 and isinstance(video[0], str) and parse_address(video[0]).kind is None:
            video = self._frames(video[0], side)
        elif all(isinstance(one, str) and parse_address(one).kind == "video" for one in video):
            video = [self._found(one, side, "video") for one in video]
        else:
            video = [self._image(one, side) for one in video]
        return {**value, "image": list(map(self._named, images)), "video": list(map(self._named, video))}

    def _image(self, source: Any, side: str) -> str:
        path = self._found(source, side, "image") if isinstance(source, str) else self._written(source["bytes"], side)
        if self._decode:
            try:
                open_image(path)
            except MediumError as error:
                raise RowError(BROKEN, f"{error} Fetch it again, or leave the row out.", side) from error
        return path

    def _found(self, source: str, side: str, kind: str) -> str:
        path = os.path.normpath(os.path.join(self._root, source))
        folder, name = os.path.split(path)
        is_file = self._names(folder).get(name)
        if is_file is None:
            raise RowError(
                MISSING,
                f"its {side} {kind} {source!r:.200} is not in {self._root}. Fetch the file, or say where such files "
                "are: --media DIR.",
                side,
            )
        if not is_file and kind == "image":
            raise RowError(
                MISSING, f"its {side} {kind} {source!r:.200} is a folder in {self._root}; name a file.", side
            )
        return path

    def _frames(self, source: str, side: str) -> list[str]:
        """Choose frames, evenly, of a video that is a folder of them."""
        path = self._found(source, side, "video")
        frames = sorted(name for name in self._names(path) if parse_address(name).kind == "image")
        if not frames:
            reason = f"its {side} video {source!r:.200} is neither a video nor a folder of pictures; fetch it again."
            raise RowError(MISSING, reason, side)
        number = min(NUM_FRAMES, len(frames))
        return [os.path.join(path, frames[place * len(frames) // number]) for place in range(number)]

    def _written(self, data: bytes, side: str) -> str:
        if not isinstance(data, bytes):
            reason = f"its {side} image has as its bytes {data!r:.80}, of type {type(data).__name__}; allowed: bytes."
            raise RowError("of another form", reason, side)
        try:
            with Image.open(io.BytesIO(data), formats=image_formats()) as picture:
                kind = str(picture.format).lower()
        except BROKEN_MEDIUM as error:
            reason = f"its {side} image can't be read: {len(data)} bytes that are no picture. Fetch the file again."
            raise RowError(BROKEN, reason, side) from error
        digest = blake2b(data, digest_size=16).hexdigest()
        path = Path(self._output, "media", digest[:2], f"{digest[2:]}.{_SUFFIXES.get(kind, kind)}")
        if not path.exists():
            with replaced_file(path) as temporary:
                temporary.write_bytes(data)
        return str(path)

    def _named(self, path: str) -> str:
        inside = os.path.commonpath([path, self._output]) == self._output
        return os.path.relpath(path, os.path.join(self._output, "pairs")) if inside else path


def _names(folder: str) -> dict[str, bool]:
    """
    Tell for each name in a folder whether it is a file, or a folder; links that lead nowhere are none.

    Of a folder that is not there, or can't be one (a name too long, links in a circle), there are none; one that may
    not be read is an error, because all of its files would seem to be missing.
    """
    try:
        with os.scandir(folder) as entries:
            found = ((entry.name, _is_file(entry)) for entry in entries)
            return {name: is_file for name, is_file in found if is_file is not None}
    except PermissionError:
        raise
    except (OSError, ValueError):  # ValueError: a null character
        return {}


def _is_file(entry: os.DirEntry[str]) -> bool | None:
    try:
        return entry.is_file() or (False if entry.is_dir() else None)
    except OSError:  # a link in a circle, or to where nobody may look
        return None
